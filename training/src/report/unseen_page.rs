//! How the experts of all languages serve the text of each, as one HTML page with a heat map.

use std::fmt::Write as _;

use crate::evaluate::ModelInfo;
use crate::evaluate::unseen::Served;
use crate::report::html::{self, escape};

/// Bits per byte above the best of a row at which a cell is darkest.
const DARKEST: f64 = 1.5;

/// The page for one model.
pub fn render(model: &ModelInfo, served: &[Served]) -> String {
    let mut page = format!(
        "<p>{} ({}). Each row is the text of a language, each column the language that the model took it for: bits per byte of the second \
         halves of its files, darker where they are more above the row's best, which is underlined. A frame marks the language's own \
         expert.</p>\n",
        escape(&model.name),
        escape(&model.checksum)
    );
    page.push_str("<div style=\"overflow-x:auto\"><table style=\"width:auto;font-size:.8rem\">\n<tr><th>text<th>none");
    for language in &model.languages {
        let _ = write!(page, "<th style=\"writing-mode:vertical-rl\">{}", escape(language));
    }
    page.push_str("</tr>\n");
    for of in served {
        let best = of.as_language.iter().copied().chain([of.none]).fold(f64::INFINITY, f64::min);
        let _ = write!(page, "<tr><td>{}", escape(&of.language));
        cell(&mut page, of.none, best, false, "none");
        for (language, &bits) in model.languages.iter().zip(&of.as_language) {
            cell(&mut page, bits, best, *language == of.language, language);
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    html::page("Other languages' experts", &page)
}

fn cell(page: &mut String, bits: f64, best: f64, is_own: bool, language: &str) {
    let shade = ((bits - best) / DARKEST).clamp(0.0, 1.0) * 0.8;
    let frame = if is_own { ";outline:2px solid #D55E00" } else { "" };
    let text = if bits <= best { format!("<u>{bits:.2}</u>") } else { format!("{bits:.2}") };
    let _ = write!(
        page,
        "<td style=\"background:rgb(0 114 178 / {shade:.3}){frame}\" title=\"as {}: {bits:.3}\">{text}",
        escape(language)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_cell_for_every_text_and_expert() {
        let model = ModelInfo { languages: vec!["lua".into(), "r".into()], ..ModelInfo::default() };
        let served = |language: &str, own| Served {
            language: language.to_owned(),
            n_bytes: 10,
            own,
            none: 2.0,
            nearest: None,
            likeliest: 1.5,
            chosen: "lua".to_owned(),
            as_language: vec![1.5, 3.0],
        };
        let page = render(&model, &[served("lua", Some(1.5)), served("julia", None)]);
        assert_eq!((page.matches("title=\"as ").count(), page.matches("outline").count()), (6, 1));
        assert_eq!(page.matches("<u>1.50</u>").count(), 2);
    }
}
