//! Keys and certificates of the authority that come from elsewhere.

use proto::kasbah::ca::v1::custody_client::CustodyClient;
use proto::kasbah::ca::v1::{
    AdoptResponse, GetCustodyRequest, GetCustodyResponse, ImportAuthorityRequest, InstallCertificateRequest,
    MakeCsrRequest,
};
use tonic::transport::Channel;

use super::CaClient;
use crate::exit::Failure;

impl CaClient {
    fn keys(&self) -> CustodyClient<Channel> {
        CustodyClient::new(self.channel.clone())
    }

    pub(crate) async fn custody(&self) -> Result<GetCustodyResponse, Failure> {
        Ok(self.keys().get_custody(GetCustodyRequest {}).await?.into_inner())
    }

    pub(crate) async fn import_authority(&self, request: ImportAuthorityRequest) -> Result<AdoptResponse, Failure> {
        Ok(self.keys().import_authority(request).await?.into_inner())
    }

    /// PKCS#10, DER.
    pub(crate) async fn make_csr(&self, another: bool) -> Result<Vec<u8>, Failure> {
        Ok(self.keys().make_csr(MakeCsrRequest { another }).await?.into_inner().csr)
    }

    pub(crate) async fn install_certificate(
        &self,
        request: InstallCertificateRequest,
    ) -> Result<AdoptResponse, Failure> {
        Ok(self.keys().install_certificate(request).await?.into_inner())
    }
}
