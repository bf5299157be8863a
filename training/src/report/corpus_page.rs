//! The report of a corpus as one HTML page with bars by language: `report.html`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::corpus::filter::Drop;
use crate::corpus::manifest::Split;
use crate::corpus::report::{PackageLine, Report};
use crate::corpus::stage::Count;
use crate::corpus::stages::Stages;
use crate::corpus::{Error, Result};
use crate::report::html::{self, COLOURS, Part, escape, legend, table_row};

/// Name of the page in the folder of shards.
pub const PAGE_NAME: &str = "report.html";

/// Colours of the splits in bars, of [`Split::ALL`].
const SPLIT_COLOURS: [&str; 3] = ["#D55E00", "#E69F00", "#0072B2"];
/// Writes `dir/report.html`.
///
/// # Errors
/// The file cannot be written.
pub fn write(dir: &Path, report: &Report, stages: Option<&Stages>) -> Result<()> {
    let path = dir.join(PAGE_NAME);
    std::fs::write(&path, render(report, stages)).map_err(Error::io(&path))
}

/// The page.
pub fn render(report: &Report, stages: Option<&Stages>) -> String {
    let mut page = String::new();
    tiles(&mut page, report);
    kept(&mut page, report);
    dropped(&mut page, report);
    reasons(&mut page, report);
    if let Some(stages) = stages {
        stage_table(&mut page, stages);
    }
    packages(&mut page, report);
    left_out(&mut page, report);
    html::page("Corpus", &page)
}

fn tiles(page: &mut String, report: &Report) {
    let all = total(report.kept.values().flat_map(BTreeMap::values));
    let gone = total(report.dropped.values().flat_map(BTreeMap::values));
    let tiles = [
        (megabytes(all.bytes), "MB kept".to_owned()),
        (all.files.to_string(), "files kept".to_owned()),
        (report.kept.len().to_string(), "languages".to_owned()),
        (report.packages.len().to_string(), "packages".to_owned()),
        (megabytes(gone.bytes), format!("MB dropped, {} files", gone.files)),
        (report.n_other.to_string(), "files in other languages or none".to_owned()),
        (report.n_masked.to_string(), "files with masked addresses or keys".to_owned()),
    ];
    html::tiles(page, &tiles);
}

fn kept(page: &mut String, report: &Report) {
    page.push_str("<h2>Kept, by language</h2>\n");
    legend(page, Split::ALL.iter().zip(SPLIT_COLOURS).map(|(split, colour)| (split.name().to_owned(), colour)));
    page.push_str("<table><tr><th>language<th><th>train MB<th>valid MB<th>test MB<th>files</tr>\n");
    let mut rows: Vec<_> = report.kept.iter().map(|(name, splits)| (name, splits, total(splits.values()))).collect();
    rows.sort_by_key(|(name, _, count)| (std::cmp::Reverse(count.bytes), *name));
    let most = rows.first().map_or(0, |(_, _, count)| count.bytes);
    for (name, splits, count) in rows {
        let bytes = |split: &Split| splits.get(split).map_or(0, |count| count.bytes);
        let parts =
            [2, 1, 0].map(|idx| (bytes(&Split::ALL[idx]), SPLIT_COLOURS[idx], Split::ALL[idx].name().to_owned()));
        let [train, valid, test] = parts.each_ref().map(|(bytes, _, _)| megabytes(*bytes));
        let bar = bar(&parts, most);
        table_row(page, &[name, &bar, &train, &valid, &test, &count.files]);
    }
    page.push_str("</table>\n");
}

/// The commonest reasons over all languages, with their colours.
fn reasons_in_colour(report: &Report) -> Vec<(Drop, Count)> {
    let mut by_reason: BTreeMap<Drop, Count> = BTreeMap::new();
    for (reason, count) in report.dropped.values().flatten() {
        by_reason.entry(*reason).or_default().add_all(*count);
    }
    let mut by_reason: Vec<(Drop, Count)> = by_reason.into_iter().collect();
    by_reason.sort_by_key(|(reason, count)| (std::cmp::Reverse(count.bytes), *reason));
    by_reason
}

fn dropped(page: &mut String, report: &Report) {
    page.push_str("<h2>Dropped, by language</h2>\n<p><small>Of all bytes in the language, kept and dropped; by reason.</small></p>\n");
    let reasons = reasons_in_colour(report);
    let colour_of = |reason: Drop| {
        let place = reasons.iter().position(|(other, _)| *other == reason).unwrap_or(0);
        COLOURS[place.min(COLOURS.len() - 1)]
    };
    let named = reasons.iter().take(COLOURS.len() - 1).map(|(reason, _)| (reason.name(), colour_of(*reason)));
    legend(page, named.chain([("others".to_owned(), COLOURS[COLOURS.len() - 1])]));
    page.push_str("<table><tr><th>language<th><th>dropped<th>MB<th>files</tr>\n");
    for (name, drops) in report.dropped.iter().filter(|(name, _)| !name.is_empty()) {
        let gone = total(drops.values());
        let kept = report.kept.get(name).map_or(0, |splits| total(splits.values()).bytes);
        let all = gone.bytes + kept;
        let mut parts: Vec<(u64, &str, String)> = reasons
            .iter()
            .filter_map(|(reason, _)| drops.get(reason).map(|count| (count.bytes, colour_of(*reason), reason.name())))
            .collect();
        parts.push((kept, "transparent", "kept".to_owned()));
        let percent = gone.bytes as f64 * 100.0 / all.max(1) as f64;
        table_row(page, &[name, &bar(&parts, all), &format!("{percent:.0} %"), &megabytes(gone.bytes), &gone.files]);
    }
    page.push_str("</table>\n");
}

fn reasons(page: &mut String, report: &Report) {
    page.push_str("<h2>Reasons</h2>\n<table><tr><th>dropped because<th>files<th>MB</tr>\n");
    for (reason, count) in reasons_in_colour(report) {
        table_row(page, &[&reason.name(), &count.files, &megabytes(count.bytes)]);
    }
    page.push_str("</table>\n");
}

fn stage_table(page: &mut String, stages: &Stages) {
    let _ = writeln!(
        page,
        "<h2>Stages</h2>\n<p><small>The last build, {} threads. \"Reused\" was there from an earlier one.</small></p>\n\
         <table><tr><th>stage<th>seconds<th>done<th>reused<th>read MB<th>kept MB<th>MB/s<th>peak MB of memory</tr>",
        stages.n_threads
    );
    for stage in &stages.stages {
        let (seconds, mb_per_s) = (format!("{:.1}", stage.seconds), format!("{:.1}", stage.mb_per_s()));
        let (read, kept, peak) =
            (megabytes(stage.read.bytes), megabytes(stage.kept.bytes), stage.peak_rss_bytes / 1_000_000);
        table_row(page, &[&stage.name, &seconds, &stage.n_done, &stage.n_reused, &read, &kept, &mb_per_s, &peak]);
    }
    page.push_str("</table>\n");
}

fn packages(page: &mut String, report: &Report) {
    let _ = writeln!(page, "<h2>Packages</h2>\n<details><summary>All {}</summary>", report.packages.len());
    page.push_str("<table><tr><th>package<th>from<th>licence<th>splits<th>languages<th>MB</tr>\n");
    let count = |line: &PackageLine| total(line.kept.values().flat_map(BTreeMap::values));
    let mut lines: Vec<_> = report.packages.values().map(|line| (line, count(line))).collect();
    lines.sort_by_key(|(line, count)| (std::cmp::Reverse(count.bytes), line.package.clone()));
    for (line, count) in lines {
        let splits: Vec<&str> = line.kept.keys().map(|split| split.name()).collect();
        let mut languages: Vec<&str> = line.kept.values().flat_map(BTreeMap::keys).map(String::as_str).collect();
        languages.sort_unstable();
        languages.dedup();
        let (package, licence) = (escape(&line.package), escape(&line.licence));
        let (splits, languages) = (splits.join(", "), languages.join(", "));
        table_row(page, &[&package, &line.source, &licence, &splits, &languages, &megabytes(count.bytes)]);
    }
    page.push_str("</table></details>\n");
}

fn left_out(page: &mut String, report: &Report) {
    if report.forbidden.is_empty() && report.missing.is_empty() {
        return;
    }
    page.push_str("<h2>Left out</h2>\n<ul>\n");
    for (package, licence) in &report.forbidden {
        let licence = if licence.is_empty() { "none recognised" } else { licence };
        let _ = writeln!(page, "<li>{}: licence {}", escape(package), escape(licence));
    }
    for package in &report.missing {
        let _ = writeln!(page, "<li>{}: not fetched", escape(package));
    }
    page.push_str("</ul>\n");
}

/// Parts of `whole` bytes beside one another, `whole` being as wide as the column.
fn bar(parts: &[(u64, &str, String)], whole: u64) -> String {
    let parts: Vec<Part<'_>> = parts
        .iter()
        .map(|(bytes, colour, name)| Part {
            width: *bytes as f64 * 100.0 / whole.max(1) as f64,
            colour,
            title: format!("{name}: {} MB", megabytes(*bytes)),
        })
        .collect();
    html::bar(&parts)
}

fn total<'a>(counts: impl Iterator<Item = &'a Count>) -> Count {
    let mut sum = Count::default();
    counts.for_each(|count| sum.add_all(*count));
    sum
}

fn megabytes(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 10.0 { format!("{megabytes:.2}") } else { format!("{megabytes:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_holds_every_language_reason_and_package() {
        let mut report = Report::default();
        let count = Count { files: 3, bytes: 2_500_000 };
        report.kept.entry("python".to_owned()).or_default().insert(Split::Train, count);
        report.kept.entry("lua".to_owned()).or_default().insert(Split::Test, Count { files: 1, bytes: 10_000 });
        report.add_drop("python", Drop::NearDuplicate, 500_000);
        report.forbidden.push(("pypi/<b>".to_owned(), String::new()));
        let page = render(&report, Some(&Stages::default()));
        assert!(page.contains("<td>python") && page.contains("<td>lua") && page.contains("near duplicate"));
        // Half a megabyte of three was dropped.
        assert!(page.contains("<td>17 %<td>0.50<td>1</tr>"), "{page}");
        assert!(page.contains("pypi/&lt;b&gt;: licence none recognised") && !page.contains("<b>:"));
        // Every bar is at most as wide as its column.
        let widths = page.split("width:").skip(1).filter_map(|rest| rest.split('%').next()?.trim().parse::<f64>().ok());
        assert!(widths.into_iter().all(|width| width <= 100.0));
    }
}
