//! The application of the scenarios: a small static program that keeps records in files and answers only when they are on
//! disk. One line in, one line out, over TCP:
//!
//! ```text
//! append CLIENT K   -> ok CLIENT K POD     the record is in CLIENT's file, and fsynced
//! pair K            -> ok pair K POD       K is appended to one of two files, in turn, each fsynced before the next
//! put NAME BYTES    -> ok NAME BYTES POD   a file of that many bytes, written aside, fsynced, renamed, its folder fsynced
//! remove NAME       -> ok NAME 0 POD       the file is unlinked and the folder fsynced
//! read              -> record CLIENT K ... end
//! read CLIENT       -> the same, of one client
//! list              -> file NAME BYTES DIGEST ... end
//! insert MODE K     -> ok MODE K POD       K is a row of an SQLite database with this journal mode (wal, delete)
//! rows MODE         -> row K ... end       after SQLite's own check of its file
//! who               -> ok POD 0 POD
//! ```
//! What fails is answered by `error` and the reason; what was asked for may then have happened or not.

use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Where it listens.
pub const PORT: u16 = 8080;

/// Serves until the process is ended. SIGTERM ends it at once: nothing that was answered is in memory only.
pub fn serve(folder: &Path) -> io::Result<()> {
    // The first process of a container has no default actions.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut told = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
    };
    std::thread::spawn(move || {
        runtime.block_on(told.recv());
        std::process::exit(0);
    });
    for name in ["records", "files"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let pod = std::env::var("HOSTNAME").unwrap_or_else(|_| "unnamed".into());
    let state = Arc::new(State { folder: folder.to_path_buf(), pod, pair: Mutex::new(()) });
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    println!("serving {}", folder.display());
    for connection in listener.incoming() {
        let (connection, state) = (connection?, Arc::clone(&state));
        std::thread::spawn(move || {
            if let Err(error) = converse(&state, connection) {
                eprintln!("a connection ended: {error}");
            }
        });
    }
    Ok(())
}

struct State {
    folder: PathBuf,
    pod: String,
    /// Keeps the two files of `pair` in one order.
    pair: Mutex<()>,
}

fn converse(state: &State, connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut out = BufWriter::new(connection.try_clone()?);
    for line in BufReader::new(connection).lines() {
        let line = line?;
        if let Err(error) = answer(state, &line, &mut out) {
            writeln!(out, "error {error}")?;
        }
        out.flush()?;
    }
    Ok(())
}

fn answer(state: &State, line: &str, out: &mut impl Write) -> io::Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let records = state.folder.join("records");
    let files = state.folder.join("files");
    match words.as_slice() {
        ["append", client, k] => {
            append(&records.join(plain(client)?), k)?;
            writeln!(out, "ok {client} {k} {}", state.pod)
        }
        ["pair", k] => {
            let number: u64 = k.parse().map_err(io::Error::other)?;
            let _order = state.pair.lock().map_err(|_| io::Error::other("a writer died"))?;
            append(&state.folder.join(if number.is_multiple_of(2) { "even" } else { "odd" }), k)?;
            writeln!(out, "ok pair {k} {}", state.pod)
        }
        ["put", name, bytes] => {
            put(&files, plain(name)?, bytes.parse().map_err(io::Error::other)?)?;
            writeln!(out, "ok {name} {bytes} {}", state.pod)
        }
        ["remove", name] => {
            fs::remove_file(files.join(plain(name)?))?;
            File::open(&files)?.sync_all()?;
            writeln!(out, "ok {name} 0 {}", state.pod)
        }
        ["read"] => {
            for entry in fs::read_dir(&records)? {
                let entry = entry?;
                for k in fs::read_to_string(entry.path())?.lines() {
                    writeln!(out, "record {} {k}", entry.file_name().to_string_lossy())?;
                }
            }
            writeln!(out, "end")
        }
        ["read", client] => {
            for k in fs::read_to_string(records.join(plain(client)?)).unwrap_or_default().lines() {
                writeln!(out, "record {client} {k}")?;
            }
            writeln!(out, "end")
        }
        ["numbers"] => {
            for name in ["even", "odd"] {
                let text = fs::read_to_string(state.folder.join(name)).unwrap_or_default();
                text.lines().try_for_each(|k| writeln!(out, "record {name} {k}"))?;
            }
            writeln!(out, "end")
        }
        ["list"] => {
            for entry in fs::read_dir(&files)? {
                let entry = entry?;
                let mut hash = Sha256::new();
                let bytes = io::copy(&mut File::open(entry.path())?, &mut hash)?;
                let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(out, "file {} {bytes} {digest}", entry.file_name().to_string_lossy())?;
            }
            writeln!(out, "end")
        }
        ["insert", mode, k] => {
            let number: u64 = k.parse().map_err(io::Error::other)?;
            sqlite(&state.folder, plain(mode)?, &format!("insert into ledger values ({number});"))?;
            writeln!(out, "ok {mode} {k} {}", state.pod)
        }
        ["rows", mode] => {
            let check = sqlite(&state.folder, plain(mode)?, "pragma integrity_check;")?;
            if check.lines().last() != Some("ok") {
                return Err(io::Error::other(format!("integrity_check: {}", check.replace('\n', "; "))));
            }
            for k in sqlite(&state.folder, plain(mode)?, "select k from ledger order by k;")?.lines() {
                writeln!(out, "row {k}")?;
            }
            writeln!(out, "end")
        }
        ["who"] => writeln!(out, "ok {} 0 {}", state.pod, state.pod),
        _ => Err(io::Error::other("not understood")),
    }
}

/// Runs statements with SQLite's own program, on the database for a journal mode. Nothing but the statements' answer is
/// returned: what the pragmas say goes elsewhere.
///
/// `synchronous=extra`: with a rollback journal a commit is the removal of that journal, and only then SQLite syncs the folder
/// that it was in (<https://www.sqlite.org/pragma.html#pragma_synchronous>). With `full` the last commit may be rolled back
/// after a loss of power, on any file system.
fn sqlite(folder: &Path, mode: &str, statements: &str) -> io::Result<String> {
    let script = format!(
        ".timeout 5000\n.output /dev/null\npragma journal_mode={mode};\npragma synchronous=extra;\n\
         create table if not exists ledger (k integer primary key);\n.output\n{statements}\n"
    );
    let mut child = std::process::Command::new("/usr/bin/sqlite3")
        .arg("-bail")
        .arg(folder.join(format!("{mode}.db")))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).replace('\n', "; ")))
    }
}

fn append(path: &Path, record: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{record}\n").as_bytes())?;
    file.sync_data()?;
    Ok(())
}

fn put(folder: &Path, name: &str, bytes: u64) -> io::Result<()> {
    let aside = folder.join(format!(".{name}.new"));
    let mut file = File::create(&aside)?;
    let seed = name.as_bytes().iter().fold(17_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    io::copy(&mut Noise { state: seed | 1, left: bytes }, &mut file)?;
    file.sync_all()?;
    fs::rename(&aside, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// Bytes that do not compress and that follow from a seed.
struct Noise {
    state: u64,
    left: u64,
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        for byte in &mut buffer[..length] {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            *byte = self.state.to_le_bytes()[0];
        }
        self.left -= length as u64;
        Ok(length)
    }
}

/// A name that stays in its folder.
fn plain(name: &str) -> io::Result<&str> {
    if name.contains('/') || name.starts_with('.') { Err(io::Error::other("not a plain name")) } else { Ok(name) }
}
