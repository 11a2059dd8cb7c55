//! Figures by row and contestant, and what is printed of them.

use crate::BARE;
use serde_json::{Value, json};
use std::fmt::Write;

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

struct Row {
    name: String,
    unit: &'static str,
    cells: Vec<(&'static str, Vec<f64>)>,
}

impl Table {
    pub(crate) fn note(&mut self, name: &str, unit: &'static str, contestant: &'static str, figure: f64) {
        eprintln!("  {name}, {contestant}: {figure:.1} {unit}");
        let row = match self.rows.iter().position(|row| row.name == name) {
            Some(index) => &mut self.rows[index],
            None => {
                self.rows.push(Row { name: name.into(), unit, cells: Vec::new() });
                self.rows.last_mut().unwrap()
            }
        };
        match row.cells.iter_mut().find(|(of, _)| *of == contestant) {
            Some((_, figures)) => figures.push(figure),
            None => row.cells.push((contestant, vec![figure])),
        }
    }

    /// Median, lowest and highest of each cell; and how the median compares with the first contestant's of that row.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "| row | contestant | median | lowest to highest | ratio |\n| --- | --- | ---: | ---: | ---: |\n",
        );
        for row in &self.rows {
            let base = row.cells.iter().find(|(of, _)| *of == BARE).or(row.cells.first());
            for (contestant, figures) in &row.cells {
                let [low, median, high] = spread(figures);
                let ratio = base.map(|(_, base)| median / spread(base)[1]).unwrap_or_default();
                writeln!(
                    text,
                    "| {} | {contestant} | {median:.1} {} | {low:.1} to {high:.1} | {ratio:.2} |",
                    row.name, row.unit
                )
                .unwrap();
            }
        }
        text
    }

    /// All figures, in the order of the rounds.
    pub(crate) fn json(&self) -> String {
        let row = |row: &Row| {
            let cells: serde_json::Map<String, Value> =
                row.cells.iter().map(|(of, figures)| ((*of).to_string(), json!(figures))).collect();
            json!({"row": row.name, "unit": row.unit, "figures": cells})
        };
        serde_json::to_string_pretty(&self.rows.iter().map(row).collect::<Vec<_>>()).unwrap()
    }

    /// Ratios of medians to the bare volume, of every row that has one and where more is better.
    pub(crate) fn ratios(&self) -> Vec<(&str, Vec<(&'static str, f64)>)> {
        let of_row = |row: &'_ Row| -> Option<Vec<(&'static str, f64)>> {
            if row.unit == "ms" {
                return None;
            }
            let base = spread(&row.cells.iter().find(|(of, _)| *of == BARE)?.1)[1];
            let others = row.cells.iter().filter(|(of, _)| *of != BARE);
            Some(others.map(|(of, figures)| (*of, spread(figures)[1] / base)).collect())
        };
        self.rows.iter().filter_map(|row| Some((row.name.as_str(), of_row(row)?))).collect()
    }

    /// Of every row that was also played with more: how the medians compare.
    pub(crate) fn growth(&self, more: &str) -> Vec<(&str, Vec<(&'static str, f64)>)> {
        let of_row = |row: &'_ Row| -> Option<Vec<(&'static str, f64)>> {
            let grown = self.rows.iter().find(|other| other.name == format!("{}{more}", row.name))?;
            let median = |row: &Row, of: &str| Some(spread(&row.cells.iter().find(|(name, _)| *name == of)?.1)[1]);
            Some(row.cells.iter().filter_map(|(of, _)| Some((*of, median(grown, of)? / median(row, of)?))).collect())
        };
        self.rows.iter().filter_map(|row| Some((row.name.as_str(), of_row(row)?))).collect()
    }
}

fn spread(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
}
