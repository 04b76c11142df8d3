//! How many of `n` requests a share of `p` may hit and still be believable. Pure.
//!
//! Asked by `verdict` for each canary step. Exact: sums the binomial distribution itself in logarithms, no
//! approximation, so that it holds for few requests and for shares near 0 and 1 as well.

/// The central interval that holds at least `confidence` of Binomial(n, p), both ends included.
///
/// At most `(1 - confidence) / 2` lies below it and as much above. `p` outside 0 to 1 is taken as the nearer end.
/// Costs O(n).
pub fn interval(n: u64, p: f64, confidence: f64) -> (u64, u64) {
    let p = p.clamp(0.0, 1.0);
    if p <= 0.0 || n == 0 {
        return (0, 0);
    }
    if p >= 1.0 {
        return (n, n);
    }
    let tail = (1.0 - confidence).max(0.0) / 2.0;
    let low = quantile_below(n, p, tail);
    // The upper end of p is the lower end of 1 - p, seen from the other side.
    let high = n - quantile_below(n, 1.0 - p, tail);
    (low, high)
}

/// The smallest `k` with P(X <= k) > tail, so that P(X < k) <= tail.
fn quantile_below(n: u64, p: f64, tail: f64) -> u64 {
    let odds = (p / (1.0 - p)).ln();
    // ln P(X = 0); each further term follows from the one before.
    let mut ln_mass = n as f64 * (1.0 - p).ln();
    let mut sum = 0.0;
    for k in 0..=n {
        sum += ln_mass.exp();
        if sum > tail {
            return k;
        }
        ln_mass += ((n - k) as f64).ln() - ((k + 1) as f64).ln() + odds;
    }
    n
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEVEL: f64 = 0.999;

    #[test]
    fn known_quantiles() {
        // A wrong interval would call a correct split broken, or a broken one correct. Values by summing the
        // distribution in exact fractions.
        for (n, p, low, high) in
            [(10, 0.5, 0, 10), (100, 0.5, 34, 66), (1000, 0.1, 70, 132), (500, 0.1, 29, 73), (1000, 0.5, 448, 552)]
        {
            assert_eq!(interval(n, p, LEVEL), (low, high), "{n} {p}");
        }
    }

    #[test]
    fn the_ends_are_sharp() {
        // A canary at 0 % must not get a single request, and one at 100 % must get each.
        assert_eq!(interval(1000, 0.0, LEVEL), (0, 0));
        assert_eq!(interval(1000, 1.0, LEVEL), (1000, 1000));
        assert_eq!(interval(0, 0.5, LEVEL), (0, 0));
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_mass_it_promises_and_not_much_more(n in 1_u64..3000, p in 0.01_f64..0.99) {
            // Summed here in another way: from the mode outwards, normalised.
            let (low, high) = interval(n, p, LEVEL);
            let mode = (((n + 1) as f64 * p).floor() as u64).min(n);
            let ratio = |k: u64| (n - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
            let mut mass = vec![0.0_f64; n as usize + 1];
            mass[mode as usize] = 1.0;
            for k in mode..n {
                mass[k as usize + 1] = mass[k as usize] * ratio(k);
            }
            for k in (0..mode).rev() {
                mass[k as usize] = mass[k as usize + 1] / ratio(k);
            }
            let all: f64 = mass.iter().sum();
            let below: f64 = mass[..low as usize].iter().sum::<f64>() / all;
            let above: f64 = mass[high as usize + 1..].iter().sum::<f64>() / all;
            prop_assert!(below <= 0.0005 + 1e-9 && above <= 0.0005 + 1e-9);
            // One step narrower would cut off too much.
            prop_assert!(below + mass[low as usize] / all > 0.0005 - 1e-9);
            prop_assert!(above + mass[high as usize] / all > 0.0005 - 1e-9);
        }
    }
}
