//! Two random choices, the cheaper wins. Pure.
//!
//! "The power of two choices": almost as even as asking everyone, at the price of asking two, and without the herd that
//! runs to whoever is the cheapest at the moment. Weights: an endpoint of weight 3 is seen as three equal parts, and two
//! parts of all are drawn. Without load the drawing alone decides, so shares follow the weights; under load what is in
//! flight follows the weights.

use super::{Candidate, Share, Standing, Usable, equal_weight};

/// Backends up to this size are looked at as a whole.
const WHOLE: usize = 32;
/// So many endpoints of a larger backend are drawn to choose among.
const SAMPLE: usize = 16;
/// And so many draws may hit an endpoint that is not ready, before everyone is looked at.
const DRAWS: usize = 4 * SAMPLE;

/// Some of a large backend's ready endpoints, all of equal weight. `None`: look at all, because the backend is small or
/// hardly anyone is ready. Two random choices from a random sample are two random choices from the whole.
pub(super) fn sample<C: Candidate>(
    endpoints: &[C],
    avoid: Option<usize>,
    mut random: impl FnMut(u64) -> u64,
) -> Option<Usable> {
    if endpoints.len() <= WHOLE {
        return None;
    }
    let mut sample = Usable::new();
    for _ in 0..DRAWS {
        let index = usize::try_from(random(endpoints.len() as u64)).ok()?;
        let Some(endpoint) = endpoints.get(index) else { continue };
        let is_known = avoid == Some(index) || sample.iter().any(|share| share.index == index);
        if !is_known && endpoint.standing() == Standing::Ready {
            sample.push(Share { index, weight: 1 });
            if sample.len() == SAMPLE {
                return Some(sample);
            }
        }
    }
    None
}

/// The cheaper of two; at least two take part.
pub(super) fn choose<C: Candidate>(
    endpoints: &[C],
    usable: &[Share],
    mut random: impl FnMut(u64) -> u64,
) -> Option<usize> {
    if equal_weight(usable).is_some() {
        // Two different ones: the second draw is over the others.
        let first = random(usable.len() as u64) as usize;
        let second = random(usable.len() as u64 - 1) as usize;
        let second = second + usize::from(second >= first);
        let (first, second) = (usable.get(first)?, usable.get(second)?);
        return cheaper(first.index, second.index, |index| Some(endpoints.get(index)?.cost()));
    }
    let total = usable.iter().map(|share| u64::from(share.weight)).sum();
    let first = part_at(usable, random(total))?;
    let second = part_at(usable, random(total))?;
    let winner = cheaper(first, second, |(share, part)| Some(endpoints.get(share.index)?.part_cost(part)))?;
    Some(winner.0.index)
}

/// The first, unless the second costs less.
fn cheaper<T: Copy>(first: T, second: T, cost: impl Fn(T) -> Option<f64>) -> Option<T> {
    Some(if cost(second)? < cost(first)? { second } else { first })
}

/// The endpoint and which of its parts, when the parts of all stand in a row.
fn part_at(usable: &[Share], place: u64) -> Option<(Share, u32)> {
    let mut left = place;
    for share in usable {
        match u32::try_from(left) {
            Ok(part) if part < share.weight => return Some((*share, part)),
            _ => left -= u64::from(share.weight),
        }
    }
    None
}
