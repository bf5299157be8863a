//! What the HTML pages share: the frame, tables, bars, legends. No scripts, fonts or network are needed to show a page.

use std::fmt::{Display, Write as _};

use super::table::Cells;

/// Okabe and Ito's colours, told apart by everybody, then lighter ones for what is rarer.
pub const COLOURS: [&str; 10] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#7B68A6", "#A0A0A0", "#5F9EA0"];

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .15rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td:has(.bar) { width: 60%; padding-right: 0; }
.bar { display: flex; height: 1.05rem; }
.bar i { display: block; height: 100%; }
.tiles { display: flex; flex-wrap: wrap; gap: 2.5rem; margin: 1rem 0; }
.tiles b { display: block; font-size: 1.7rem; }
.legend span { margin-right: 1.1rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
small, .legend { color: var(--soft); }
svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font-size: 12px; }
";

/// A page with `title` as its heading; `body` is HTML.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n\
         {body}</body></html>\n"
    )
}

/// Large numbers beside one another, each with what it counts.
pub fn tiles(page: &mut String, tiles: &[(String, String)]) {
    page.push_str("<div class=\"tiles\">");
    for (number, name) in tiles {
        let _ = write!(page, "<div><b>{number}</b>{name}</div>");
    }
    page.push_str("</div>\n");
}

/// A row of a table; cells are HTML.
pub fn table_row(page: &mut String, cells: &[&dyn Display]) {
    page.push_str("<tr>");
    for cell in cells {
        let _ = write!(page, "<td>{cell}");
    }
    page.push_str("</tr>\n");
}

/// Text cells, of which the first row is the heading; wide tables scroll.
pub fn cells_table(page: &mut String, cells: &Cells) {
    page.push_str("<div style=\"overflow-x:auto\"><table>\n");
    for (at, row) in cells.iter().enumerate() {
        let tag = if at == 0 { "th" } else { "td" };
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<{tag}>{}", escape(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

/// A part of a bar.
pub struct Part<'a> {
    /// Percent of the column's width.
    pub width: f64,
    /// A colour of CSS.
    pub colour: &'a str,
    /// Said when the pointer rests on it.
    pub title: String,
}

/// Parts beside one another; those without width are left out.
pub fn bar(parts: &[Part<'_>]) -> String {
    let mut bar = "<div class=\"bar\">".to_owned();
    for Part { width, colour, title } in parts.iter().filter(|part| part.width > 0.0) {
        let title = escape(title);
        let _ = write!(bar, "<i style=\"width:{width:.2}%;background:{colour}\" title=\"{title}\"></i>");
    }
    bar + "</div>"
}

/// What each colour means.
pub fn legend<'a>(page: &mut String, entries: impl Iterator<Item = (String, &'a str)>) {
    page.push_str("<p class=\"legend\">");
    for (name, colour) in entries {
        let _ = write!(page, "<span><i style=\"background:{colour}\"></i>{name}</span>");
    }
    page.push_str("</p>\n");
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
