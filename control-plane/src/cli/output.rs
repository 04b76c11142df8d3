//! Writing: data to standard output, messages to standard error, neither ever panics.
//!
//! A reader that went away (`outrigger get | head -1`) ends the command quietly. Colour only where a terminal shows it and
//! nobody said NO_COLOR.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;

use super::outcome::{Exit, Failure};

/// `-o` of commands that list things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// The table with more columns.
    Wide,
    Json,
    Yaml,
}

/// `-o` of commands whose outcome is a sentence for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Report {
    #[default]
    Text,
    Json,
    Yaml,
}

pub const RED: Style = AnsiColor::Red.on_default().bold();
pub const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
pub const GREEN: Style = AnsiColor::Green.on_default();

/// `text` in `style`; the writer drops the colour where it does not belong.
pub fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Writes data.
///
/// Errors: a failure without a message when the reader is gone, one with a message for anything else (a full disk).
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::silent(Exit::Ok)
        } else {
            Failure::failed(format_args!("cannot write to standard output: {error}"))
        }
    })
}

/// Writes a message; nobody may be listening.
pub fn note(text: &str) {
    let mut err = anstream::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// Writes the message that goes with a failure.
pub fn error(message: &str) {
    note(&format!("{} {message}", styled(RED, "error:")));
}

/// Writes a warning.
pub fn warning(message: &str) {
    note(&format!("{} {message}", styled(YELLOW, "warning:")));
}

/// Whether a person watches standard error, so that progress is worth showing.
pub fn progress_wanted() -> bool {
    io::stderr().is_terminal()
}

/// Prints a value as JSON, indented.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format_args!("cannot write JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// Prints a value as one YAML document.
pub fn print_yaml(value: &impl Serialize) -> Result<(), Failure> {
    print(&to_yaml(value)?)
}

/// A value as one YAML document, ending in a line break.
pub fn to_yaml(value: &impl Serialize) -> Result<String, Failure> {
    let mut text =
        serde_saphyr::to_string(value).map_err(|error| Failure::failed(format_args!("cannot write YAML: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// How long ago, the way kubectl says it: "12s", "5m", "3h", "8d".
pub fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Seconds since 1970, by the machine's clock.
pub fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A time as people read it, in UTC; "-" for none.
pub fn time(unix_seconds: i64) -> String {
    match jiff::Timestamp::from_second(unix_seconds) {
        Ok(time) if unix_seconds != 0 => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        _ => "-".to_owned(),
    }
}

/// A duration as people read it: "850 us", "180 ms", "2.4 s".
pub fn elapsed(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// "1 proxy", "37 proxies".
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_the_unit_that_fits() {
        // "0 s" for a change that took 180 ms hides what the line is there to show.
        assert_eq!(elapsed(850), "850 us");
        assert_eq!(elapsed(180_400), "180 ms");
        assert_eq!(elapsed(2_440_000), "2.4 s");
        assert_eq!(
            (age(-5), age(119), age(120), age(7_200), age(200_000)),
            ("0s".into(), "119s".into(), "2m".into(), "2h".into(), "2d".into())
        );
        assert_eq!(time(0), "-");
        assert_eq!(time(1_000_000_000), "2001-09-09 01:46:40");
    }
}
