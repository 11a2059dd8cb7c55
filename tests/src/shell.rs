//! Commands of the machine, run so that a failure says which command, how it ended and what it printed.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs a command to its end and returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    finish(command, None)
}

/// Runs a command that reads `input`, to its end, and returns what it printed.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    finish(command, Some(input))
}

/// Runs a command of the `PATH` with these arguments.
pub fn sh(program: &str, arguments: &[&str]) -> Result<String> {
    run(Command::new(program).args(arguments))
}

/// Whether the command ran and succeeded; what it prints is of no interest.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn finish(command: &mut Command, input: Option<&str>) -> Result<String> {
    let text = shown(command);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| format!("start `{text}`"))?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(input.as_bytes()).with_context(|| format!("write to `{text}`"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("wait for `{text}`"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{text}`: {}: {} {}", output.status, complaint.trim(), printed.trim());
    }
    Ok(printed)
}
