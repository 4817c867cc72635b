"""pkilint looks at every certificate of PEM files and, where one has signed another, at the pair; prints what it finds."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography import x509

TOOLS = Path(sys.executable).parent


def findings(tool, *files):
    """What a linter says about certificates in files."""
    command = [TOOLS / tool, "lint", "-s", "NOTICE", "-f", "JSON", *files]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    for result in json.loads(answer.stdout)["results"]:
        for finding in result["finding_descriptions"]:
            yield finding["code"], finding["message"] or ""


def is_mistaken(code, message):
    """pkilint's list of URI schemes has no `spiffe`, and its host names need a dot."""
    spiffe = code == "pkix.invalid_uri_syntax" and '"spiffe://' in message
    local = code == "pkix.invalid_domain_name_syntax" and message.endswith('"localhost"')
    return spiffe or local


def has_signed(issuer, subject):
    """Whether one certificate's key has made the other's signature."""
    try:
        subject.verify_directly_issued_by(issuer)
    except Exception:  # pylint: disable=broad-except
        return False
    return True


def main():
    pattern = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", re.DOTALL)
    texts = list(dict.fromkeys(text for name in sys.argv[1:] for text in pattern.findall(Path(name).read_text("ascii"))))
    certificates = [x509.load_pem_x509_certificate(text.encode()) for text in texts]
    found, pairs = [], 0
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{at}.pem" for at in range(len(texts))]
        for file, text in zip(files, texts):
            file.write_text(text, "ascii")
            found += findings("lint_pkix_cert", file)
        for at, issuer in enumerate(certificates):
            for of, subject in enumerate(certificates):
                if at != of and has_signed(issuer, subject):
                    pairs += 1
                    found += findings("lint_pkix_signer_signee_cert_chain", files[at], files[of])
    real = [f"{code}: {message}" for code, message in found if not is_mistaken(code, message)]
    print(json.dumps({"certificates": len(texts), "pairs": pairs, "findings": real}))


main()
