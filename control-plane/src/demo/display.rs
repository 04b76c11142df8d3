//! The story in a terminal: acts with check marks, and a status line that is redrawn while traffic flows.
//!
//! Without a terminal it writes plain lines, the status every few seconds. Colour follows NO_COLOR and the terminal.
//! [`status_line`] and [`fit`] are pure. Nobody may be listening any more; that is never an error.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use anstyle::{AnsiColor, Style};
use parking_lot::Mutex;

use super::traffic::Tally;

/// Between two status lines when they cannot be redrawn.
const PLAIN_STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// Width when the terminal does not say.
const DEFAULT_WIDTH: usize = 80;
/// Cells of the canary's bar.
const BAR_CELLS: usize = 10;

const HEAD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();

/// Where the story is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The story is the outcome.
    Stdout,
    /// Standard output belongs to the JSON report.
    Stderr,
}

struct Screen {
    /// Whether a status line stands at the cursor.
    status_shown: bool,
    last_plain: Option<Instant>,
}

/// The terminal, or what stands for it.
pub struct Display {
    stream: Stream,
    redraws: bool,
    color: bool,
    screen: Mutex<Screen>,
}

impl Display {
    pub fn new(stream: Stream) -> Self {
        let terminal = match stream {
            Stream::Stdout => std::io::stdout().is_terminal(),
            Stream::Stderr => std::io::stderr().is_terminal(),
        };
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            stream,
            redraws: terminal && !dumb,
            color: terminal && !dumb && !set("NO_COLOR"),
            screen: Mutex::new(Screen { status_shown: false, last_plain: None }),
        }
    }

    /// Begins an act.
    pub fn act(&self, title: &str) {
        self.line(&format!("\n{}", self.paint(HEAD, title)));
    }

    /// Something that holds.
    pub fn check(&self, text: &str) {
        self.line(&format!("  {} {text}", self.paint(GOOD, "✓")));
    }

    /// A promise that does not hold.
    pub fn cross(&self, text: &str) {
        self.line(&format!("  {} {text}", self.paint(BAD, "✗")));
    }

    /// What happens just now, or a remark.
    pub fn note(&self, text: &str) {
        self.line(&format!("  {}", self.paint(DIM, text)));
    }

    /// Something to copy.
    pub fn plain(&self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// Draws the status line again; without a terminal, writes it now and then.
    pub fn status(&self, text: &str) {
        let mut screen = self.screen.lock();
        if self.redraws {
            self.write(&format!("\r\x1b[2K{}", fit(text, self.width().saturating_sub(1))));
            screen.status_shown = true;
        } else if screen.last_plain.is_none_or(|last| last.elapsed() >= PLAIN_STATUS_INTERVAL) {
            screen.last_plain = Some(Instant::now());
            self.write(&format!("  {text}\n"));
        }
    }

    /// Takes the status line away; for the end.
    pub fn clear_status(&self) {
        let mut screen = self.screen.lock();
        if std::mem::take(&mut screen.status_shown) {
            self.write("\r\x1b[2K");
        }
    }

    fn line(&self, text: &str) {
        let mut screen = self.screen.lock();
        let erase = if std::mem::take(&mut screen.status_shown) { "\r\x1b[2K" } else { "" };
        self.write(&format!("{erase}{text}\n"));
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.color { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    fn width(&self) -> usize {
        let size = match self.stream {
            Stream::Stdout => rustix::termios::tcgetwinsize(std::io::stdout()),
            Stream::Stderr => rustix::termios::tcgetwinsize(std::io::stderr()),
        };
        size.ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0).unwrap_or(DEFAULT_WIDTH)
    }

    fn write(&self, text: &str) {
        let _ = match self.stream {
            Stream::Stdout => write_all(std::io::stdout().lock(), text),
            Stream::Stderr => write_all(std::io::stderr().lock(), text),
        };
    }
}

fn write_all(mut out: impl Write, text: &str) -> std::io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// What the status line says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub elapsed: Duration,
    pub canary_percent: u32,
    pub requests_per_second: f64,
    pub tally: Tally,
    pub retries: u64,
    /// Empty until it is known.
    pub breaker: String,
    pub swaps: u64,
}

/// The status line, for any width.
pub fn status_line(status: &Status) -> String {
    let filled = (status.canary_percent as usize * BAR_CELLS).div_ceil(100).min(BAR_CELLS);
    let bar = format!("{}{}", "█".repeat(filled), "░".repeat(BAR_CELLS - filled));
    let breaker = if status.breaker.is_empty() { "-" } else { &status.breaker };
    format!(
        "{:>3}s {bar} v2 {}% | {:.0} rps | failed {} | breaker {breaker} | retries {} | fallback {} | swaps {} | ok {}",
        status.elapsed.as_secs(),
        status.canary_percent,
        status.requests_per_second,
        status.tally.failed,
        status.retries,
        status.tally.fallback,
        status.swaps,
        status.tally.ok,
    )
}

/// At most `width` characters; what was cut shows as "…". Every character here is one column wide.
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(percent: u32) -> Status {
        Status {
            elapsed: Duration::from_secs(7),
            canary_percent: percent,
            requests_per_second: 299.6,
            tally: Tally { requests: 2100, ok: 2000, fallback: 100, failed: 0, by_v2: 210 },
            retries: 12,
            breaker: "half_open".to_owned(),
            swaps: 3,
        }
    }

    #[test]
    fn the_status_line_shows_what_matters_first() {
        // On a narrow terminal the end is cut off; failures must still be seen.
        assert_eq!(
            status_line(&status(10)),
            "  7s █░░░░░░░░░ v2 10% | 300 rps | failed 0 | breaker half_open | retries 12 | fallback 100 | swaps 3 | ok 2000"
        );
        assert!(fit(&status_line(&status(100)), 50).contains("failed 0"));
        for (percent, cells) in [(0, 0), (1, 1), (50, 5), (100, 10)] {
            assert_eq!(status_line(&status(percent)).matches('█').count(), cells, "{percent}");
        }
    }

    #[test]
    fn a_line_never_wraps() {
        // A wrapped status line cannot be erased and fills the screen.
        let line = status_line(&status(50));
        for width in 0..140 {
            assert!(fit(&line, width).chars().count() <= width);
        }
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("abc", 4), "abc");
    }
}
