//! Line charts as SVG, inside a page or alone in a file: axes, a grid, one line per series.

use std::fmt::Write as _;

use super::escaped;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;
/// A line with more points than this is drawn by the mean and the range of neighbouring ones.
const MOST_POINTS: usize = 360;

/// A line and its name.
pub struct Series {
    /// Stands in the legend.
    pub name: String,
    /// Step and value; values that are no number are gaps.
    pub points: Vec<(f64, f64)>,
}

/// Some neighbouring points as one.
struct Bucket {
    x: f64,
    mean: f64,
    low: f64,
    high: f64,
}

/// A line as it is drawn.
type Line<'a> = (&'a str, Vec<Bucket>);

fn lines(series: &[Series]) -> Vec<Line<'_>> {
    series.iter().map(|one| (one.name.as_str(), buckets(&one.points))).collect()
}

/// Grid and lines; whether there is a point to draw.
fn draw(out: &mut String, lines: &[Line<'_>]) -> bool {
    let all = || lines.iter().flat_map(|(_, buckets)| buckets);
    if all().next().is_none() {
        return false;
    }
    let x = Axis::over(all().flat_map(|bucket| [bucket.x]), LEFT, WIDTH - RIGHT);
    let y = Axis::over(all().flat_map(|bucket| [bucket.low, bucket.high]), HEIGHT - BOTTOM, TOP);
    grid(out, &x, &y);
    for (index, (name, buckets)) in lines.iter().enumerate() {
        line(out, index, name, buckets, (&x, &y));
    }
    true
}

/// A chart, or nothing where no series has a point.
pub fn chart(title: &str, unit: &str, series: &[Series]) -> String {
    let lines = lines(series);
    let mut drawn = String::new();
    if !draw(&mut drawn, &lines) {
        return drawn;
    }
    let mut out = format!(
        "<figure><figcaption>{} <span>{}</span></figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         role=\"img\" aria-label=\"{0}\">\n",
        escaped(title),
        escaped(unit),
    );
    out.push_str(&drawn);
    out.push_str("</svg>\n");
    if lines.len() > 1 {
        out.push_str("<p class=\"legend\">");
        for (index, (name, _)) in lines.iter().enumerate() {
            _ = write!(out, "<span class=\"s{}\">{}</span>", index % COLOURS, escaped(name));
        }
        out.push_str("</p>\n");
    }
    out.push_str("</figure>\n");
    out
}

/// The colours of the page's style sheet, for a picture that has none.
const PALETTE: [&str; COLOURS] = [
    "#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b", "#dc2626", "#0891b2",
    "#65a30d", "#92400e", "#2dd4bf", "#e879f9",
];
const COLOURS: usize = 12;

/// A chart of a picture.
pub struct Picture {
    /// Stands above it.
    pub title: String,
    /// Stands beside the title.
    pub unit: String,
    /// Its lines.
    pub series: Vec<Series>,
}

/// Charts below each other, each with its legend, as one SVG file that needs nothing beside it.
pub fn picture(charts: &[Picture]) -> String {
    const TITLE: f64 = 26.0;
    const NAME: f64 = 18.0;
    const NAMES_A_ROW: usize = 4;
    let (mut body, mut top) = (String::new(), 0.0);
    for Picture { title, unit, series } in charts {
        let (title, unit) = (escaped(title), escaped(unit));
        _ = writeln!(
            body,
            "<text x=\"8\" y=\"{:.0}\" class=\"title\">{title} ({unit})</text>\n\
             <g transform=\"translate(0 {:.0})\">",
            top + NAME,
            top + TITLE
        );
        draw(&mut body, &lines(series));
        body.push_str("</g>\n");
        top += TITLE + HEIGHT;
        for (index, one) in series.iter().enumerate() {
            let (row, column) = (index / NAMES_A_ROW, index % NAMES_A_ROW);
            let x = LEFT + column as f64 * (WIDTH - LEFT - RIGHT) / NAMES_A_ROW as f64;
            let y = top + NAME * row as f64;
            let (colour, name) = (PALETTE[index % COLOURS], escaped(&one.name));
            _ = writeln!(
                body,
                "<rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
                 <text x=\"{:.0}\" y=\"{:.0}\">{name}</text>",
                x + 15.0,
                y + 9.0
            );
        }
        top += NAME * (series.len().div_ceil(NAMES_A_ROW) + 1) as f64;
    }
    let mut style = String::from(
        "text { font: 11px sans-serif; fill: #334155; } .title { font-weight: bold; }\n\
         .end { text-anchor: end; } .middle { text-anchor: middle; }\n\
         line { stroke: #cbd5e1; stroke-width: .6; } polyline { fill: none; stroke-width: 1.6; }\n\
         polygon { opacity: .2; }\n",
    );
    for (index, colour) in PALETTE.iter().enumerate() {
        _ = writeln!(
            style,
            "polyline.s{index} {{ stroke: {colour}; }} \
             polygon.s{index}, circle.s{index} {{ fill: {colour}; }}"
        );
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top:.0}\" \
         width=\"{WIDTH}\" height=\"{top:.0}\">\n<style>\n{style}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

fn buckets(points: &[(f64, f64)]) -> Vec<Bucket> {
    let finite: Vec<(f64, f64)> =
        points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let size = finite.len().div_ceil(MOST_POINTS).max(1);
    let bucket = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        let value = |(_, y): &(f64, f64)| *y;
        Bucket {
            x: part.iter().map(|(x, _)| x).sum::<f64>() / count,
            mean: part.iter().map(value).sum::<f64>() / count,
            low: part.iter().map(value).fold(f64::INFINITY, f64::min),
            high: part.iter().map(value).fold(f64::NEG_INFINITY, f64::max),
        }
    };
    finite.chunks(size).map(bucket).collect()
}

fn line(out: &mut String, index: usize, name: &str, buckets: &[Bucket], (x, y): (&Axis, &Axis)) {
    let class = index % COLOURS;
    if buckets.iter().any(|bucket| bucket.low < bucket.high) {
        let upper = buckets.iter().map(|bucket| (bucket.x, bucket.high));
        let lower = buckets.iter().rev().map(|bucket| (bucket.x, bucket.low));
        let outline = path(upper.chain(lower), x, y);
        _ = writeln!(out, "<polygon class=\"s{class}\" points=\"{outline}\"/>");
    }
    let means = path(buckets.iter().map(|bucket| (bucket.x, bucket.mean)), x, y);
    let name = escaped(name);
    _ = writeln!(
        out,
        "<polyline class=\"s{class}\" points=\"{means}\"><title>{name}</title></polyline>"
    );
    if buckets.len() <= 40 {
        for bucket in buckets {
            let (cx, cy) = (x.place(bucket.x), y.place(bucket.mean));
            let value = short(bucket.mean);
            _ = writeln!(
                out,
                "<circle class=\"s{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"2.5\"><title>{name} \
                 at {}: {value}</title></circle>",
                bucket.x
            );
        }
    }
}

fn path(points: impl Iterator<Item = (f64, f64)>, x: &Axis, y: &Axis) -> String {
    let point = |(a, b): (f64, f64)| format!("{:.1},{:.1}", x.place(a), y.place(b));
    points.map(point).collect::<Vec<_>>().join(" ")
}

fn grid(out: &mut String, x: &Axis, y: &Axis) {
    for tick in y.ticks() {
        let at = y.place(tick);
        _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" \
             y=\"{:.1}\" class=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            short(tick)
        );
    }
    for tick in x.ticks() {
        let at = x.place(tick);
        _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"{:.1}\" class=\"middle\">{}</text>",
            HEIGHT - 8.0,
            short(tick)
        );
    }
}

/// Values from `low` to `high` on a line from one place to another.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        // One value has an axis around it.
        let room = if low == high { if low == 0.0 { 1.0 } else { low.abs() / 2.0 } } else { 0.0 };
        Self { low: low - room, high: high + room, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round numbers: 1, 2 or 5 times a power of ten apart.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let apart = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let apart = apart.into_iter().find(|apart| *apart >= rough).unwrap_or(rough);
        let first = (self.low / apart).ceil() as i64;
        let last = (self.high / apart).floor() as i64;
        (first..=last).take(12).map(|tick| tick as f64 * apart).collect()
    }
}

/// Four digits, as short as they can be.
pub fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor();
    if !(-3.0..6.0).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let digits = (3.0 - magnitude).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A small line without axes, for a cell of a table.
pub fn sparkline(points: &[(f64, f64)]) -> String {
    let buckets = buckets(points);
    if buckets.len() < 2 {
        return String::new();
    }
    let x = Axis::over(buckets.iter().map(|bucket| bucket.x), 1.0, 89.0);
    let y = Axis::over(buckets.iter().map(|bucket| bucket.mean), 19.0, 1.0);
    let line = path(buckets.iter().map(|bucket| (bucket.x, bucket.mean)), &x, &y);
    format!(
        "<svg class=\"spark\" viewBox=\"0 0 90 20\" aria-hidden=\"true\"><polyline class=\"s0\" \
         points=\"{line}\"/></svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_numbers_short() {
        let axis = Axis { low: 3.2, high: 4.1, from: 0.0, to: 1.0 };
        let ticks: Vec<String> = axis.ticks().into_iter().map(short).collect();
        assert_eq!(ticks, ["3.2", "3.4", "3.6", "3.8", "4"]);
        assert_eq!([1234.5, 0.00012, 0.25, 1e9].map(short), ["1234", "1.20e-4", "0.25", "1.00e9"]);
    }

    #[test]
    fn many_points_keep_their_peaks_and_gaps_are_left_out() {
        let mut points: Vec<(f64, f64)> = (0..5000).map(|step| (f64::from(step), 1.0)).collect();
        points[4321].1 = 9.0;
        points[7].1 = f64::NAN;
        let buckets = buckets(&points);
        assert!(buckets.len() <= MOST_POINTS);
        assert!(buckets.iter().any(|bucket| bucket.high == 9.0));
        assert!(buckets.iter().all(|bucket| bucket.mean.is_finite()));
        let one = [Series { name: "a<b".into(), points }];
        let drawn = chart("loss", "nats", &one);
        assert!(drawn.contains("polygon") && drawn.contains("a&lt;b") && !drawn.contains("NaN"));
        assert_eq!(chart("empty", "", &[Series { name: String::new(), points: vec![] }]), "");
    }

    #[test]
    fn a_picture_has_the_colours_of_the_page_and_the_names_of_its_lines() {
        let css = include_str!("page.css");
        for (index, colour) in PALETTE.iter().enumerate() {
            assert!(css.contains(&format!("--c{index}: {colour};")), "{colour}");
            assert!(css.contains(&format!("polyline.s{index} {{ stroke: var(--c{index}); }}")));
        }
        let series =
            |name: &str| Series { name: name.into(), points: vec![(2.0, 3.0), (4.0, 1.0)] };
        let all = (0..11).map(|index| series(&format!("R&D {index}"))).collect();
        let drawn = picture(&[Picture { title: "loss".into(), unit: "nats".into(), series: all }]);
        assert!(drawn.starts_with("<svg xmlns=") && drawn.ends_with("</svg>\n"));
        assert_eq!(drawn.matches("<polyline").count(), 11);
        // Name of a line, and of its points' tooltips.
        assert!(drawn.contains("<text x=\"79\" y=\"275\">R&amp;D 0</text>"), "{drawn}");
    }
}
