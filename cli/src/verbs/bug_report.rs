//! `kasbah bug-report`: what somebody needs who helps, in one archive, without secrets.
//!
//! Every text passes [`redact`](mod@redact) before it is written, whatever it is and wherever it comes from. A part that
//! cannot be had is named in `missing.txt`, and the report is made all the same: it is wanted most when things are broken.

mod redact;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::{check, status, wait};
use crate::args::{BugReportArgs, DirArg};
use crate::exit::Failure;
use crate::output;
use crate::up::MeshState;
use crate::up::layout::Layout;
use redact::Redactor;

/// Files of the report, before they are packed.
struct Report {
    redactor: Redactor,
    files: Vec<(String, String)>,
    missing: Vec<String>,
}

pub(crate) fn run(args: &BugReportArgs) -> Result<(), Failure> {
    let layout = Layout::of(&args.dir.dir)?;
    let report = gather(&layout, &args.dir);
    let file = args.output.clone().unwrap_or_else(default_name);
    let failed = |error: std::io::Error| {
        Failure::failed(format!("{}: {error}", file.display())).remedy("name another file with --output FILE.tar.gz")
    };
    let sink = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).map_err(failed)?;
    pack(&report, sink).map_err(failed)?;
    for missing in &report.missing {
        output::message(&format!("left out: {missing}"));
    }
    output::message("names, addresses and SPIFFE IDs are in it: look before you send it");
    output::line(&file.display().to_string());
    Ok(())
}

fn default_name() -> PathBuf {
    let time = runtime::clock::rfc3339(SystemTime::now()).replace(':', "");
    PathBuf::from(format!("kasbah-report-{time}.tar.gz"))
}

fn gather(layout: &Layout, dir: &DirArg) -> Report {
    let redactor = Redactor::with_known(known_secrets(layout));
    let mut report = Report { redactor, files: Vec::new(), missing: Vec::new() };
    report.about(layout);
    match status::running(layout) {
        Ok(state) => report.running(layout, &state, dir),
        Err(failure) => report.missing.push(format!("status, check, pages: {failure}")),
    }
    report.folder("settings", &layout.run("settings"));
    report.folder("config", &layout.config());
    report.folder("policy", &layout.dir.join("policy"));
    report.folder("logs", &layout.logs());
    report
}

/// Secrets that lie in the mesh's own files: wherever they turn up, they are removed.
fn known_secrets(layout: &Layout) -> Vec<String> {
    let join_token = crate::up::join_token_file(layout);
    std::fs::read_to_string(join_token).into_iter().map(|text| text.trim().to_owned()).collect()
}

impl Report {
    fn add(&mut self, name: &str, text: &str) {
        let text = self.redactor.clean(text);
        self.files.push((name.to_owned(), text));
    }

    fn document(&mut self, name: &str, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.add(name, &text),
            Err(error) => self.missing.push(format!("{name}: {error}")),
        }
    }

    fn about(&mut self, layout: &Layout) {
        let system = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let about = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "time": runtime::clock::rfc3339(SystemTime::now()),
            "dir": layout.dir,
            "system": {"name": text(system.sysname()), "release": text(system.release()), "machine": text(system.machine())},
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
        });
        self.document("about.json", &about);
    }

    fn running(&mut self, layout: &Layout, state: &MeshState, dir: &DirArg) {
        let asked = wait(async {
            let status = status::report(layout, state).await;
            Ok((status, check::look_at(dir).await, pages(state).await))
        });
        let (status, look, pages) = match asked {
            Ok(answers) => answers,
            Err(failure) => return self.missing.push(format!("status, check, pages: {failure}")),
        };
        self.document("status.json", &status);
        match look {
            Ok(look) => self.document("check.json", &look.checks),
            Err(failure) => self.missing.push(format!("check: {failure}")),
        }
        for (name, page) in pages {
            match page {
                Ok(text) => self.add(&name, &text),
                Err(why) => self.missing.push(format!("{name}: {why}")),
            }
        }
    }

    /// The files of a folder, the ends of those that are large, and those of folders in it.
    fn folder(&mut self, name: &str, folder: &Path) {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.missing.push(format!("{}: {error}", folder.display())),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let name = format!("{name}/{}", path.file_name().unwrap_or_default().to_string_lossy());
            if self.files.len() >= FILES_MAX {
                return self.missing.push(format!("{name} and what follows: more than {FILES_MAX} files"));
            }
            // What a link leads to is not part of the mesh.
            match path.symlink_metadata() {
                Ok(data) if data.is_dir() && name.split('/').count() < DEPTH_MAX => self.folder(&name, &path),
                Ok(data) if data.is_file() => match tail(&path) {
                    Ok(text) => self.add(&name, &text),
                    Err(error) => self.missing.push(format!("{name}: {error}")),
                },
                _ => self.missing.push(format!("{name}: no plain file")),
            }
        }
    }
}

async fn pages(state: &MeshState) -> Vec<(String, Result<String, String>)> {
    let mut pages = Vec::new();
    for process in &state.processes {
        let Some(admin) = process.admin else { continue };
        for path in PAGES {
            let text = match runtime::ask::get(admin, path).await {
                Ok((StatusCode::OK, body)) => Ok(String::from_utf8_lossy(&body).into_owned()),
                Ok((status, _)) => Err(status.to_string()),
                Err(error) => Err(error.to_string()),
            };
            pages.push((format!("pages/{}{path}", process.name), text));
        }
    }
    pages
}

/// The end of a file, from the beginning of a line.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if skipped == 0 {
        return Ok(text);
    }
    // A cut line could begin within a secret, where nothing tells that it is one.
    let whole = text.split_once('\n').map_or("", |(_, rest)| rest);
    Ok(format!("[the first bytes are left out]\n{whole}"))
}

fn pack(report: &Report, sink: File) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(sink, Compression::default()));
    let missing = ("missing.txt".to_owned(), report.redactor.clean(&report.missing.join("\n")));
    for (name, text) in report.files.iter().chain([&missing]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, format!("kasbah-report/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.sync_all()
}

const PAGES: &[&str] = &["/status", "/certs", "/config_dump", "/findings", "/metrics"];
const FILES_MAX: usize = 1000;
const DEPTH_MAX: usize = 5;
/// Of each file.
const TAIL_BYTES_MAX: u64 = 512 * 1024;
