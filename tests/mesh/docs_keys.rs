//! `docs/custody.md` and `docs/rotation.md`, typed: keys in a token and with a signer, imports, an offline root, a rotation with its
//! receipt. Moves from other authorities are `migration`'s; what needs a cluster or SPIRE's programs is tried for its form.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Program, tools, wait};
use libtest_mimic::Trial;

use crate::docs_authority::{authority, here, join, settings_of};
use crate::docs_commands::{commands_of, is_known};
use crate::page::Page;
use crate::trial::alone;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        alone("docs_keys::authorities_are_imported_and_an_offline_root_signs_as_the_page_says", custody),
        alone("docs_keys::a_token_keeps_the_keys_as_the_page_says", a_token),
        alone("docs_keys::a_signer_keeps_the_keys_as_the_page_says", a_signer),
        alone("docs_keys::every_block_of_settings_is_taken", settings_are_taken),
        alone("docs_keys::a_root_is_rotated_as_the_page_says", rotation),
    ]
}

/// What the page has typed about keys elsewhere, in tests of their own.
const ELSEWHERE: [&str; 7] =
    ["apt-get", "export SOFTHSM2", "mkdir", "softhsm2-util", "install -m", "kasbah ca run", "kasbah ca signer"];

fn custody() -> Result<()> {
    let mut page = authority("")?;
    authorities_to_import(&page)?;
    let mut rotated = 0;
    for command in
        commands_of("custody.md")?.iter().filter(|command| !ELSEWHERE.iter().any(|other| command.starts_with(other)))
    {
        let command = command.replace("spiffe://example.org", "spiffe://cluster.local");
        match command.split(" #").next().unwrap_or_default().trim() {
            // Without a terminal nobody is asked.
            "kasbah ca rotate" => {
                rotated += 1;
                // After an import below a root that signs already nothing is left to do.
                page.type_in("kasbah ca rotate --yes").with_context(|| format!("rotation {rotated}"))?;
            }
            _ => {
                // The third root of the page is the one that signs the request.
                if command.starts_with("cat > intermediate.ext") {
                    new_root(&page, "root", "offline root")?;
                }
                page.type_in(&command).with_context(|| command.clone())?;
            }
        }
    }
    ensure!(rotated == 3, "{rotated} rotations");
    let keys = page.type_in("kasbah ca keys")?;
    ensure!(
        keys.lines().any(|line| line.starts_with("root") && line.contains("active") && line.contains("offline")),
        "{keys}"
    );
    ensure!(page.type_in("kasbah bundle show")? == std::fs::read_to_string(page.path("root.pem"))?, "another root");
    join(&page, "after").context("and it issues")?;
    page.stop()
}

fn new_root(page: &Page, file: &str, name: &str) -> Result<()> {
    let command = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {file}.key -out {file}.pem -days 3650 \
         -subj '/CN={name}' -addext 'keyUsage=critical,keyCertSign,cRLSign'"
    );
    page.type_in(&command).map(drop)
}

/// `root.pem` with its key, and `ca.pem` below `between.pem` below it, with an encrypted key.
fn authorities_to_import(page: &Page) -> Result<()> {
    new_root(page, "root", "our root")?;
    std::fs::write(page.path("pw"), "a passphrase\n")?;
    let extensions = |length: u8| {
        format!(
            "basicConstraints=critical,CA:TRUE,pathlen:{length}\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n\
             authorityKeyIdentifier=keyid\n"
        )
    };
    for (name, issuer, length) in [("between", "root", 1), ("ca", "between", 0)] {
        std::fs::write(page.path("ext"), extensions(length))?;
        let make = format!(
            "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj '/CN={name}' && \
             openssl x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -days 700 -sha256 -extfile ext -out {name}.pem"
        );
        page.type_in(&make)?;
    }
    page.type_in("openssl pkcs8 -topk8 -in ca.key -out sealed.key -passout file:pw && mv sealed.key ca.key").map(drop)
}

/// The commands of the page from one to another.
fn between(first: &str, last: &str) -> Result<Vec<String>> {
    let commands = commands_of("custody.md")?;
    let begin = commands.iter().position(|command| command.starts_with(first)).context(first.to_owned())?;
    let end = commands[begin..].iter().position(|command| command.starts_with(last)).context(last.to_owned())?;
    Ok(commands[begin..=begin + end].to_vec())
}

fn a_token() -> Result<()> {
    tools::system("softhsm2-util")?;
    let page = crate::ca_docs::open()?;
    std::fs::create_dir_all(page.path("etc"))?;
    // As one shell types them: the variable is for all.
    let commands = between("export SOFTHSM2_CONF", "install -m")?;
    page.type_in(&commands.join("\n"))?;
    let settings = settings_of(&page, "custody.md")?;
    let settings = settings.iter().find(|block| block.contains("pkcs11:")).context("no settings")?;
    std::fs::copy(page.path("pin"), page.path("etc/pin"))?;
    page.type_in("chmod 600 etc/pin")?;
    page.settle(&settings.replace("/usr/lib/softhsm/libsofthsm2.so", &module()?))?;
    // The program of the page, with the variable of the page.
    let run =
        Program::new("bash").args(["-c", "SOFTHSM2_CONF=$PWD/softhsm2.conf exec bin/kasbah ca run --config ca.yaml"]);
    let running = run.in_folder(&page.path("")).background(&page.path("ca.log"))?;
    wait::until("the authority", START_MAX, || page.type_in("kasbah ca keys").map(drop))
        .with_context(|| page.log("ca"))?;
    let keys = page.type_in("kasbah ca keys")?;
    ensure!(keys.lines().skip(1).all(|line| line.contains("pkcs11")), "{keys}");
    join(&page, "here")?;
    drop(running);
    Ok(())
}

/// Where this machine has the module of SoftHSM.
fn module() -> Result<String> {
    let known = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"];
    let found = known.iter().find(|path| std::path::Path::new(path).exists());
    Ok((*found.context("libsofthsm2.so is not where it is on Debian")?).to_owned())
}

fn a_signer() -> Result<()> {
    let page = crate::ca_docs::open()?;
    std::fs::create_dir_all(page.path("run"))?;
    let own = page.type_in("id -u")?;
    let places = |text: &str| {
        let run = page.path("run").display().to_string();
        text.replace("/run/kasbah-signer", &run).replace("owner: 998", &format!("owner: {}", own.trim()))
    };
    let command = places(&page.here(&between("kasbah ca signer", "kasbah ca signer")?.remove(0)));
    let signer = Program::new("bash").args(["-c", &format!("exec bin/{command}")]).in_folder(&page.path(""));
    let signer = signer.background(&page.path("signer.log"))?;
    let settings = settings_of(&page, "custody.md")?;
    let settings = settings.iter().find(|block| block.contains("external_signer:")).context("no settings")?;
    let is_there = || {
        ensure!(page.path("run/signer.sock").exists(), "no socket");
        Ok(())
    };
    wait::until("the signer", START_MAX, is_there)
        .with_context(|| std::fs::read_to_string(page.path("signer.log")).unwrap_or_default())?;
    page.settle(&places(settings))?;
    let mut page = page;
    page.start()?;
    let keys = page.type_in("kasbah ca keys")?;
    ensure!(keys.lines().skip(1).all(|line| line.contains("external_signer")), "{keys}");
    join(&page, "here")?;
    page.stop()?;
    drop(signer);
    Ok(())
}

/// What can only run with a vault, an authority above or a credential of systemd is judged by `--check`.
fn settings_are_taken() -> Result<()> {
    let page = crate::ca_docs::open()?;
    let mut judged = 0;
    for block in settings_of(&page, "custody.md")? {
        page.settle(&block)?;
        page.type_in("kasbah ca run --config ca.yaml --check").with_context(|| block.clone())?;
        judged += 1;
    }
    ensure!(judged >= 8, "only {judged} blocks");
    Ok(())
}

fn rotation() -> Result<()> {
    let mut page = authority("")?;
    let node = join(&page, "web-1")?;
    let mut typed = 0;
    for command in commands_of("rotation.md")? {
        match command.split(" #").next().unwrap_or_default().trim() {
            "kasbah ca rotate --plan" => {
                let plan = page.type_in(&command)?;
                ensure!(["prepare", "activate", "taint", "revoke"].iter().all(|step| plan.contains(step)), "{plan}");
                typed += 1;
            }
            // The only node is away: it is waived, once the rotation knows it.
            "kasbah ca rotate" => {
                page.type_in("kasbah ca rotate prepare")?;
                page.type_in(&format!("kasbah ca rotate activate --waive {node}"))?;
                page.type_in("kasbah ca rotate --yes")?;
                typed += 1;
            }
            emergency if emergency.starts_with("kasbah ca rotate --compromised") => {
                page.type_in(&emergency.replace("10s", "1s"))?;
                typed += 1;
            }
            receipt if receipt.starts_with("kasbah ca rotate receipt") => {
                page.type_in(receipt)?;
                typed += 1;
            }
            // `ca_docs` loses the root, `ca_docs` and `recovery` restore, `migration` moves from other authorities.
            _ => is_known(&here(&page, &command))?,
        }
    }
    if typed != 6 {
        bail!("{typed} commands of the page were typed");
    }
    page.stop()
}

const START_MAX: Duration = Duration::from_secs(20);
