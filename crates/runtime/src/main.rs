//! The `foveal` binary: reads the command line, does it, and turns what went wrong into one line and an exit status.
#![forbid(unsafe_code)]

mod cli;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::args::{RawArgs, RawCommand};
use cli::config::Config;
use cli::{CliError, execute};

/// What is logged, as `info` or `foveal_engine=debug`.
const LOG_VARIABLE: &str = "FOVEAL_LOG";

fn main() -> ExitCode {
    // Usage errors of the parser itself end here, with status 2.
    let raw = RawArgs::parse();
    // Whoever serves wants a line for each request.
    let default = if matches!(raw.command, RawCommand::Serve(_)) { "info" } else { "warn" };
    match start_logs(default).and_then(|()| execute(Config::new(raw)?)) {
        Ok(()) | Err(CliError::StdoutClosed) => ExitCode::SUCCESS,
        Err(error) => {
            cli::show(&error);
            ExitCode::from(error.exit_status())
        }
    }
}

/// Logs go to stderr, which errors share: by default only warnings, unless more, or nothing, is asked for.
fn start_logs(default: &str) -> Result<(), CliError> {
    let directives = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::try_new(&directives).map_err(|_| CliError::Log { variable: LOG_VARIABLE, directives })?;
    // A log that can't be written is no reason to fail: the subscriber would complain with `eprintln!`, which panics.
    let logs = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    logs.with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).init();
    Ok(())
}
