//! The report as one HTML file: plots drawn in SVG, tables beside them, nothing loaded from elsewhere and no scripts.

use std::fmt::Write as _;

use crate::{
    figures::{Figure, Outcome, Report, Role, Spread, number},
    table,
};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;\
    color:#1b1f24;background:#fff}h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.5rem}\
    table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:.5rem 0}\
    th,td{padding:.15rem .6rem;text-align:right;white-space:nowrap}th{border-bottom:1px solid #8c959f;font-weight:600}\
    th:first-child,td:first-child{text-align:left}tr.outrigger td{background:#eaf4ec;font-weight:600}\
    .wide{overflow-x:auto}.gap{color:#8a4600}.plots{display:flex;flex-wrap:wrap;gap:1.5rem}svg text{font-size:12px}\
    figure{margin:0}figcaption{font-size:13px;color:#57606a}";

/// Pixels of a plot.
const LABEL_WIDTH: f64 = 110.0;
const BAR_WIDTH: f64 = 300.0;
const VALUE_WIDTH: f64 = 130.0;
const ROW_HEIGHT: f64 = 22.0;

/// The whole page.
pub fn page(report: &Report) -> String {
    let machine = &report.machine;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Outrigger beside its peers</title><style>{STYLE}</style></head><body>\n\
         <h1>Outrigger beside its peers</h1>\n<p>{}, {} cores, kernel {}; {}; {} rounds of {} s. Bars are medians, the thin \
         lines go from the best round to the worst. Lower is better unless a figure is a rate.</p>\n<table>\n",
        escape(&machine.cpu),
        machine.cores,
        escape(&machine.kernel),
        escape(&report.date),
        report.rounds,
        report.seconds
    );
    for (name, version) in &machine.versions {
        let _ = writeln!(page, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(version));
    }
    page.push_str("</table>\n<h2>At a glance</h2>\n<table>\n");
    for (index, row) in table::summary(report).iter().enumerate() {
        let cell = if index == 0 { "th" } else { "td" };
        let cells = row.iter().enumerate().map(|(column, text)| {
            let text = escape(text);
            let text = if column == 0 && index > 0 { format!("<a href=\"#{text}\">{text}</a>") } else { text };
            format!("<{cell}>{text}</{cell}>")
        });
        let _ = writeln!(page, "<tr>{}</tr>", cells.collect::<String>());
    }
    page.push_str("</table>\n");
    for outcome in &report.scenarios {
        scenario(&mut page, report, outcome);
    }
    page.push_str("</body></html>\n");
    page
}

fn scenario(page: &mut String, report: &Report, outcome: &Outcome) {
    let _ = write!(
        page,
        "<h2 id=\"{0}\">{0}: {1}</h2>\n<div class=\"plots\">\n",
        escape(&outcome.scenario),
        escape(&outcome.title)
    );
    for figure in plotted(outcome) {
        plot(page, outcome, figure);
    }
    page.push_str("</div>\n<div class=\"wide\"><table>\n");
    let rows = table::rows(report, outcome);
    for (index, row) in rows.iter().enumerate() {
        let role = index.checked_sub(1).and_then(|index| outcome.chains.get(index)).map(|measured| measured.role);
        let class = if role == Some(Role::Outrigger) { " class=\"outrigger\"" } else { "" };
        let cell = if index == 0 { "th" } else { "td" };
        let cells: String = row.iter().map(|text| format!("<{cell}>{}</{cell}>", escape(text))).collect();
        let _ = writeln!(page, "<tr{class}>{cells}</tr>");
    }
    page.push_str("</table></div>\n");
    for gap in &outcome.gaps {
        let _ = writeln!(page, "<p class=\"gap\">{}</p>", escape(gap));
    }
}

/// The headlines, and what everybody asks for next.
fn plotted(outcome: &Outcome) -> Vec<Figure> {
    let present = outcome.present();
    let mut figures = outcome.headlines.clone();
    figures.extend([Figure::Rate, Figure::PeakMemory].into_iter().filter(|_| outcome.headlines == [Figure::Cpu]));
    figures.retain(|figure| present.contains(figure));
    figures
}

fn plot(page: &mut String, outcome: &Outcome, figure: Figure) {
    let bars: Vec<(&str, Role, Spread)> = outcome
        .chains
        .iter()
        .filter_map(|measured| Some((measured.chain.as_str(), measured.role, measured.spread(figure)?)))
        .collect();
    let most = bars.iter().map(|(_, _, spread)| spread.most).fold(0.0, f64::max);
    if most <= 0.0 {
        return;
    }
    let (width, height) = (LABEL_WIDTH + BAR_WIDTH + VALUE_WIDTH, bars.len() as f64 * ROW_HEIGHT + 4.0);
    let heading = escape(&figure.heading(outcome.work));
    let _ = writeln!(
        page,
        "<figure><figcaption>{heading}</figcaption><svg width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"{heading}\">"
    );
    let long = |value: f64| (value / most).clamp(0.0, 1.0) * BAR_WIDTH;
    for (row, (chain, role, spread)) in bars.iter().enumerate() {
        let top = row as f64 * ROW_HEIGHT;
        let middle = top + ROW_HEIGHT / 2.0;
        let colour = match role {
            Role::Outrigger => "#2da44e",
            Role::Floor => "#8c959f",
            Role::None => "#d0d7de",
            Role::Peer => "#6e9bd1",
        };
        let _ = writeln!(
            page,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text><rect x=\"{LABEL_WIDTH}\" y=\"{:.0}\" \
             width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.0}\" \
             y2=\"{middle:.0}\" stroke=\"#1b1f24\"/><text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
            LABEL_WIDTH - 8.0,
            middle + 4.0,
            escape(chain),
            top + 3.0,
            long(spread.median),
            ROW_HEIGHT - 6.0,
            LABEL_WIDTH + long(spread.least),
            LABEL_WIDTH + long(spread.most),
            LABEL_WIDTH + long(spread.most) + 8.0,
            middle + 4.0,
            number(spread.median),
        );
    }
    page.push_str("</svg></figure>\n");
}

/// What others wrote, as text: versions and logs of programs stand in the page.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::sample;

    #[test]
    fn a_page_stands_for_itself_and_shows_every_chain() {
        // A report that needs the network, or runs what a log said, cannot be handed on.
        let page = page(&sample(12.0));
        assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("https://"), "{page}");
        assert!(page.contains("two hops &lt;x&gt;") && !page.contains("<x>"), "{page}");
        for chain in ["no proxy", "floor", "outrigger", "nginx", "haproxy"] {
            assert!(page.contains(&format!("<td>{chain}</td>")), "{chain}");
        }
        assert_eq!(page.matches("<figure>").count(), 2, "CPU and rate");
        assert_eq!(page.matches("<rect").count(), 4 + 5);
    }

    #[test]
    fn the_longest_bar_fills_the_plot() {
        // Bars of unlike scale would show what is not so.
        let page = page(&sample(12.0));
        assert!(page.contains("width=\"300.0\""), "{page}");
        assert!(page.contains("width=\"100.0\""), "the floor's 10 of 30 us: {page}");
    }
}
