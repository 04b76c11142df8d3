//! The process's own log: one line per event on standard error, whose level can change while it runs.
//!
//! `main` starts it once; the admin port changes its level. Lines go through a bounded writer, so that a blocked
//! standard error stops nothing.

use std::fmt;

use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::MakeWriter,
    layer::{Layer as _, SubscriberExt as _},
    reload,
};

use super::writer::LineWriter;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Changes the level of the running process.
#[derive(Clone)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
    writer: LineWriter,
}

/// Why the log could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "cannot read log filter {filter:?}: {reason} (use a level such as \"info\", or \"info,outrigger_proxy::http=debug\")"
    )]
    Filter { filter: String, reason: String },
    #[error("the process already has a log")]
    Started,
    #[error("cannot start the thread that writes the log")]
    Thread,
    #[error("the log is gone")]
    Gone,
}

/// Starts the log on standard error. `filter` is a level or tracing's `target=level` list.
///
/// # Errors
/// When the filter cannot be read, or the process has a log already.
pub fn start(format: LogFormat, filter: &str) -> Result<LogControl, LogError> {
    let writer = LineWriter::start("log", Box::new(std::io::stderr())).ok_or(LogError::Thread)?;
    let (layer, filter) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines(writer.clone())).with_ansi(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let subscriber = Registry::default().with(layer).with(lines);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Started)?;
    Ok(LogControl { filter, writer })
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| LogError::Filter { filter: filter.to_owned(), reason: error.to_string() })
}

impl LogControl {
    /// Replaces the filter.
    ///
    /// # Errors
    /// When it cannot be read; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.filter.reload(parse(filter)?).map_err(|_| LogError::Gone)
    }

    /// The filter in force.
    pub fn filter(&self) -> String {
        self.filter.with_current(EnvFilter::to_string).unwrap_or_default()
    }

    /// Lines dropped because standard error was blocked.
    pub fn dropped(&self) -> u64 {
        self.writer.dropped()
    }

    /// Waits until the lines so far are written, at most a second. For the end of the process.
    pub fn flush(&self) {
        self.writer.flush(std::time::Duration::from_secs(1));
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogControl").field(&self.filter()).finish()
    }
}

struct Lines(LineWriter);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        self.0.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_lists() {
        // A typo in a level must say so, not silence the log.
        for good in ["info", "debug", "off", "info,outrigger_proxy::http=debug"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["info,http=verylowlevel", "=,="] {
            assert!(parse(bad).unwrap_err().to_string().contains("use a level"), "{bad}");
        }
    }
}
