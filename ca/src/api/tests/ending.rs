//! Who keeps a stream open does not keep the process: its stream ends in order when the authority is asked to end.
//!
//! The authority used to wait for such callers until its limit, five seconds, and then cut them off.

use super::*;

#[tokio::test]
async fn a_node_that_keeps_its_synchronisation_open_sees_it_end_in_order() {
    let ca = Running::start().await;
    let node = ca.node(Some("/node/local")).await;
    let many = (0..=crate::api::entry::PAGE_ENTRIES).map(|n| entry_message(&format!("/many/{n}"), "/node/local"));
    let request =
        proto::spire::api::server::entry::v1::BatchCreateEntryRequest { entries: many.collect(), output_mask: None };
    EntryClient::new(ca.local().await).batch_create_entry(request).await.unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(SyncAuthorizedEntriesRequest::default()).await.unwrap();
    let mut client = EntryClient::new(ca.network(Some(&node)));
    let mut answers = client.sync_authorized_entries(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    while answers.message().await.unwrap().unwrap().more {}
    ca.stop().await;
    assert!(answers.message().await.expect("ends in order").is_none());
    drop(sender);
}
