//! The picture of a run: rates beside raw Redis, and latencies at fixed rates. Plain SVG.

use std::{fmt::Write as _, fs, path::Path};

use crate::{
    closed::BATCH,
    open_table::OpenRow,
    rows::{CROWD, Row, Target, Work},
};

const WIDTH: f64 = 760.0;
/// Where the area begins in which values are drawn, and how wide it is; texts stand before and behind it.
const LEFT: f64 = 210.0;
const AREA: f64 = 400.0;
const LINE: f64 = 22.0;
/// The ends of the axis of latencies, in microseconds.
const SHORTEST: f64 = 50.0;
const LONGEST: f64 = 100_000.0;
const QUANTILES: [(f64, &str, &str); 3] =
    [(0.5, "p50", "#2a9d8f"), (0.99, "p99", "#e9a23b"), (0.999, "p99.9", "#c8553d")];

/// Writes the picture; `notes` say more about who was asked.
pub fn write(file: &Path, closed: &[Row], open: &[OpenRow], durability: &str, notes: &[String]) {
    let mut plot = Plot { body: String::new(), y: LINE };
    plot.text(10.0, &format!("Streamkeep beside others, {durability}"), "font-weight='bold'");
    for events in [1, BATCH] {
        plot.rates(closed, events);
    }
    plot.latencies(open);
    plot.y += LINE;
    for note in notes {
        plot.y += LINE;
        plot.text(10.0, note, "fill='#666' font-size='11'");
    }
    let (height, body) = (plot.y + LINE, plot.body);
    let svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' font-family='sans-serif' font-size='13'>\n\
         <rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    );
    fs::write(file, svg).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

struct Plot {
    body: String,
    /// The line that is written next.
    y: f64,
}

impl Plot {
    fn text(&mut self, x: f64, text: &str, style: &str) {
        let y = self.y;
        writeln!(self.body, "<text x='{x:.0}' y='{y:.0}' {style}>{text}</text>").expect("memory takes it");
    }

    fn rect(&mut self, width: f64, color: &str) {
        let top = self.y - 12.0;
        writeln!(self.body, "<rect x='{LEFT}' y='{top:.0}' width='{width:.1}' height='15' fill='{color}'/>")
            .expect("memory takes it");
    }

    fn title(&mut self, text: &str) {
        self.y += 2.0 * LINE;
        self.text(10.0, text, "");
    }

    /// A bar for each target that appends so many events at once, of the rate of raw Redis.
    fn rates(&mut self, rows: &[Row], events: usize) {
        let alike = |row: &&Row| {
            (row.work, row.events, row.connections) == (Work::Append, events, CROWD) && row.target != Target::Echo
        };
        let ratio = |row: &Row| row.ratio(rows, Work::Append, Target::Raw);
        let bars: Vec<_> = rows.iter().filter(alike).filter_map(|row| Some((row, ratio(row)?))).collect();
        let most = bars.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max);
        if bars.is_empty() {
            return;
        }
        let requests = if events == 1 { "one event".to_owned() } else { format!("{events} events at once") };
        self.title(&format!("Appends of {requests} over {CROWD} connections: rate, raw Redis is 1"));
        for (row, ratio) in bars {
            self.y += LINE;
            self.text(10.0, row.target.name(), "");
            let color = if row.target.is_service() { "#2a6fb0" } else { "#a9b4c0" };
            let width = ratio / most * AREA;
            self.rect(width, color);
            let rate = row.median(|sample| sample.rate);
            self.text(LEFT + width + 6.0, &format!("{ratio:.2} ({rate:.0}/s)"), "");
        }
    }

    /// A line for each rate and target, from the median to the tail, on a logarithmic axis.
    fn latencies(&mut self, rows: &[OpenRow]) {
        if rows.is_empty() {
            return;
        }
        let at =
            |micros: f64| LEFT + AREA * (micros.clamp(SHORTEST, LONGEST) / SHORTEST).ln() / (LONGEST / SHORTEST).ln();
        self.title("Appends of one event at fixed rates: latency from when each was due");
        for (index, (_, name, color)) in QUANTILES.into_iter().enumerate() {
            self.text(
                LEFT + AREA + 20.0 + 45.0 * f64::from(u8::try_from(index).expect("three")),
                name,
                &format!("fill='{color}'"),
            );
        }
        let top = self.y + 8.0;
        for row in rows {
            self.y += LINE;
            self.text(10.0, &format!("{} at {:.0}/s", row.target.name(), row.due), "");
            let y = self.y - 4.0;
            let (from, to) = (at(row.latency(0.5)), at(row.latency(0.999)));
            writeln!(
                self.body,
                "<line x1='{from:.1}' x2='{to:.1}' y1='{y:.0}' y2='{y:.0}' stroke='#a9b4c0' stroke-width='3'/>"
            )
            .expect("memory takes it");
            for (quantile, _, color) in QUANTILES {
                let x = at(row.latency(quantile));
                writeln!(self.body, "<circle cx='{x:.1}' cy='{y:.0}' r='5' fill='{color}'/>").expect("memory takes it");
            }
            self.text(LEFT + AREA + 20.0, &format!("p99 {:.1} ms", row.latency(0.99) / 1000.0), "");
        }
        let bottom = self.y + 8.0;
        self.y += LINE;
        for (micros, name) in [(100.0, "0.1 ms"), (1_000.0, "1 ms"), (10_000.0, "10 ms"), (LONGEST, "100 ms")] {
            let x = at(micros);
            writeln!(self.body, "<line x1='{x:.1}' x2='{x:.1}' y1='{top:.0}' y2='{bottom:.0}' stroke='#d8dde3'/>")
                .expect("memory takes it");
            self.text(x, name, "text-anchor='middle' fill='#666'");
        }
    }
}
