//! How far a run is: one line on a terminal that the next one replaces. Nothing when nobody watches.

use std::{
    cell::Cell,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

const BAR_CELLS: usize = 24;

/// A bar over all the steps of a run.
pub struct Progress {
    steps: usize,
    done: Cell<usize>,
    began: Instant,
    is_watched: bool,
}

impl Progress {
    /// For a run of so many steps.
    pub fn new(steps: usize) -> Self {
        let is_watched = std::io::stderr().is_terminal();
        Self { steps: steps.max(1), done: Cell::new(0), began: Instant::now(), is_watched }
    }

    /// Says what is being done now, without counting it.
    pub fn tell(&self, what: &str) {
        if self.is_watched {
            eprint!("\r\x1b[K{}", line(self.done.get(), self.steps, self.began.elapsed(), what));
            let _ = std::io::stderr().flush();
        }
    }

    /// So many steps are done, or will not be done.
    pub fn advance(&self, steps: usize) {
        self.done.set((self.done.get() + steps).min(self.steps));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_watched {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(done: usize, steps: usize, elapsed: Duration, what: &str) -> String {
    let full = done * BAR_CELLS / steps;
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < full { '#' } else { '.' }).collect();
    let left = match done {
        0 => String::new(),
        done => {
            let left = elapsed.mul_f64((steps - done) as f64 / done as f64).as_secs();
            format!(", {}:{:02} left", left / 60, left % 60)
        }
    };
    format!("[{bar}] {}%{left}  {what}", done * 100 / steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_to_its_end() {
        // A bar that stands still, or runs over, tells nothing.
        let at = |done| line(done, 4, Duration::from_secs(60), "two-hops");
        assert!(at(0).starts_with("[........................] 0%  two-hops"), "{}", at(0));
        assert!(at(1).contains("] 25%, 3:00 left  two-hops"), "{}", at(1));
        assert!(at(4).starts_with("[########################] 100%, 0:00 left"), "{}", at(4));
    }
}
