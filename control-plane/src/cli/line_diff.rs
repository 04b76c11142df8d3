//! Which lines differ between two texts, as a unified diff. Pure.

/// Lines around a change that are shown with it.
const CONTEXT: usize = 3;
/// Cells of the comparison table; texts beyond it are shown as replaced whole.
const CELLS_MAX: usize = 16_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Same(&'a str),
    Removed(&'a str),
    Added(&'a str),
}

/// The difference, without file heads; empty when the texts are equal.
pub fn unified(before: &str, after: &str) -> String {
    let lines = compare(&before.lines().collect::<Vec<_>>(), &after.lines().collect::<Vec<_>>());
    let changed: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| !matches!(line, Line::Same(_))).map(|(index, _)| index).collect();
    let mut text = String::new();
    let mut next = 0;
    while next < changed.len() {
        let start = changed[next].saturating_sub(CONTEXT);
        let mut end = changed[next];
        while next < changed.len() && changed[next] <= end + 2 * CONTEXT {
            end = changed[next];
            next += 1;
        }
        let end = (end + CONTEXT + 1).min(lines.len());
        text.push_str(&head(&lines, start, end));
        for line in &lines[start..end] {
            let (mark, line) = match line {
                Line::Same(line) => (' ', line),
                Line::Removed(line) => ('-', line),
                Line::Added(line) => ('+', line),
            };
            text.push_str(&format!("{mark}{line}\n"));
        }
    }
    text
}

fn head(lines: &[Line<'_>], start: usize, end: usize) -> String {
    let old = |part: &[Line<'_>]| part.iter().filter(|line| !matches!(line, Line::Added(_))).count();
    let new = |part: &[Line<'_>]| part.iter().filter(|line| !matches!(line, Line::Removed(_))).count();
    let range = |before: usize, inside: usize| {
        // diff(1) counts the line before an empty range.
        let first = if inside == 0 { before } else { before + 1 };
        format!("{first},{inside}")
    };
    format!(
        "@@ -{} +{} @@\n",
        range(old(&lines[..start]), old(&lines[start..end])),
        range(new(&lines[..start]), new(&lines[start..end]))
    )
}

/// Longest common subsequence, after equal beginnings and ends are set aside.
fn compare<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<Line<'a>> {
    let same_start = before.iter().zip(after).take_while(|(one, other)| one == other).count();
    let (old, new) = (&before[same_start..], &after[same_start..]);
    let same_end = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
    let tail = &old[old.len() - same_end..];
    let (old, new) = (&old[..old.len() - same_end], &new[..new.len() - same_end]);

    let mut lines: Vec<Line<'a>> = before[..same_start].iter().map(|line| Line::Same(line)).collect();
    let width = new.len() + 1;
    if (old.len() + 1).saturating_mul(width) > CELLS_MAX {
        lines.extend(old.iter().map(|line| Line::Removed(line)));
        lines.extend(new.iter().map(|line| Line::Added(line)));
    } else {
        // common[i * width + j]: length of the longest common subsequence of old[i..] and new[j..].
        let mut common = vec![0_u32; (old.len() + 1) * width];
        for i in (0..old.len()).rev() {
            for j in (0..new.len()).rev() {
                common[i * width + j] = if old[i] == new[j] {
                    common[(i + 1) * width + j + 1] + 1
                } else {
                    common[(i + 1) * width + j].max(common[i * width + j + 1])
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < new.len() {
            if i < old.len() && j < new.len() && old[i] == new[j] {
                lines.push(Line::Same(old[i]));
                (i, j) = (i + 1, j + 1);
            } else if j == new.len() || (i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]) {
                lines.push(Line::Removed(old[i]));
                i += 1;
            } else {
                lines.push(Line::Added(new[j]));
                j += 1;
            }
        }
    }
    lines.extend(tail.iter().map(|line| Line::Same(line)));
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_changed_weight_shows_with_its_surroundings() {
        // Without context nobody knows which of several weights changed.
        let before = "a\nb\nc\nd\nweight: 90\ne\nf\ng\nh\n";
        let after = "a\nb\nc\nd\nweight: 50\ne\nf\ng\nh\n";
        assert_eq!(unified(before, after), "@@ -2,7 +2,7 @@\n b\n c\n d\n-weight: 90\n+weight: 50\n e\n f\n g\n");
        assert_eq!(unified(before, before), "");
        assert_eq!(unified("", "x\n"), "@@ -0,0 +1,1 @@\n+x\n");
    }

    #[test]
    fn a_large_object_is_still_compared() {
        // A table of old lines times new lines must not take gigabytes.
        let before = (0..9_000).map(|n| format!("a{n}\n")).collect::<String>();
        let after = (0..9_000).map(|n| format!("b{n}\n")).collect::<String>();
        assert_eq!(unified(&before, &after).lines().count(), 18_001);
    }

    proptest! {
        #[test]
        fn both_texts_can_be_read_back_from_the_comparison(
            before in prop::collection::vec("[abc]", 0..12), after in prop::collection::vec("[abc]", 0..12),
        ) {
            // A diff that loses a line shows the user a change that is not the one being made.
            let before: Vec<&str> = before.iter().map(String::as_str).collect();
            let after: Vec<&str> = after.iter().map(String::as_str).collect();
            let lines = compare(&before, &after);
            let old: Vec<&str> = lines.iter().filter_map(|line| match line {
                Line::Same(text) | Line::Removed(text) => Some(*text),
                Line::Added(_) => None,
            }).collect();
            let new: Vec<&str> = lines.iter().filter_map(|line| match line {
                Line::Same(text) | Line::Added(text) => Some(*text),
                Line::Removed(_) => None,
            }).collect();
            prop_assert_eq!(old, before);
            prop_assert_eq!(new, after);
        }
    }
}
