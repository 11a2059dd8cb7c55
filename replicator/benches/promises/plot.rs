//! A plot of ratios, as an SVG: a line of bars for each row, in a logarithmic measure, because what is compared lies orders
//! of magnitude apart.

use std::fmt::Write;

const COLOURS: [&str; 8] = ["#1b6ca8", "#4fa3d1", "#9fd0ea", "#b0b0b0", "#d9822b", "#7a5195", "#3a8f5c", "#c2476d"];
const LEFT: f64 = 250.0;
const WIDTH: f64 = 520.0;
const BAR: f64 = 10.0;
const GAP: f64 = 12.0;
/// From a thousandth to twice the bare volume.
const LOWEST: f64 = 0.001;
const HIGHEST: f64 = 2.0;

fn along(ratio: f64) -> f64 {
    let place = (ratio.clamp(LOWEST, HIGHEST) / LOWEST).log10() / (HIGHEST / LOWEST).log10();
    LEFT + WIDTH * place
}

/// Rows with their contestants' ratios.
pub(crate) fn svg(rows: &[(&str, Vec<(&'static str, f64)>)]) -> String {
    let mut names: Vec<&str> = rows.iter().flat_map(|(_, cells)| cells.iter().map(|(of, _)| *of)).collect();
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(*name));
    let colour = |name: &str| {
        let index = names.iter().position(|known| *known == name).unwrap_or_default();
        COLOURS[index % COLOURS.len()]
    };
    let (mut body, mut top) = (String::new(), 40.0);
    for (name, cells) in rows {
        let middle = top + BAR * cells.len() as f64 / 2.0 + 4.0;
        writeln!(body, r#"<text x="{}" y="{middle}" text-anchor="end">{name}</text>"#, LEFT - 8.0).unwrap();
        for (of, ratio) in cells {
            let width = along(*ratio) - LEFT;
            writeln!(
                body,
                r#"<rect x="{LEFT}" y="{top}" width="{width:.1}" height="{}" fill="{}"><title>{of}: {ratio:.3}</title></rect>"#,
                BAR - 1.0,
                colour(of)
            )
            .unwrap();
            top += BAR;
        }
        top += GAP;
    }
    let mut marks = String::new();
    for ratio in [0.001, 0.01, 0.1, 0.2, 0.5, 1.0, 2.0] {
        let x = along(ratio);
        writeln!(marks, r##"<line x1="{x:.1}" y1="32" x2="{x:.1}" y2="{top}" stroke="#ddd"/>"##).unwrap();
        writeln!(marks, r#"<text x="{x:.1}" y="26" text-anchor="middle">{ratio}</text>"#).unwrap();
    }
    for (index, name) in names.iter().enumerate() {
        let (x, y) = (40.0 + 250.0 * (index % 3) as f64, top + 6.0 + 16.0 * (index / 3) as f64);
        writeln!(marks, r#"<rect x="{x}" y="{y}" width="10" height="10" fill="{}"/>"#, colour(name)).unwrap();
        writeln!(marks, r#"<text x="{}" y="{}">{name}</text>"#, x + 14.0, y + 9.0).unwrap();
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{marks}{body}</svg>\n",
        LEFT + WIDTH + 40.0,
        top + 30.0 + 16.0 * (names.len() / 3) as f64
    )
}
