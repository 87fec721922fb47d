//! Line charts as SVG: concurrency on an axis of powers of two.

use std::fmt::Write as _;

/// The whole picture's width, and the frame's place in it, in pixels.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 730.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 360.0;
/// From the frame to the legend's first line, and from line to line.
const LEGEND_TOP: f64 = 72.0;
const LEGEND_LINE: f64 = 20.0;
/// Okabe and Ito's colours, which nearly everybody can tell apart.
const COLORS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
/// The most lines across.
const MAX_TICKS: f64 = 6.0;

/// A chart of several lines.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) x_label: &'a str,
    pub(crate) y_label: &'a str,
    /// A name and its points, x rising and at least 1.
    pub(crate) series: Vec<(&'a str, Vec<(usize, f64)>)>,
}

impl Chart<'_> {
    /// The picture, alone in a file.
    pub(crate) fn svg(&self) -> String {
        // A name keeps its colour in charts where another has no points.
        let colored = self.series.iter().zip(COLORS.into_iter().cycle());
        let series: Vec<_> = colored.filter(|((_, points), _)| !points.is_empty()).collect();
        let points = || series.iter().flat_map(|((_, points), _)| points);
        let mut xs: Vec<usize> = points().map(|(x, _)| *x).collect();
        xs.sort_unstable();
        xs.dedup();
        let (step, num_steps) = ticks(points().map(|(_, y)| *y).fold(0.0, f64::max));
        let y_of = |y: f64| BOTTOM - (BOTTOM - TOP) * y / (step * f64::from(num_steps));
        let log = |x: usize| (x.max(1) as f64).log2();
        let (first, last) = (xs.first().copied().map_or(0.0, log), xs.last().copied().map_or(0.0, log));
        let x_of = |x: usize| {
            let share = if last > first { (log(x) - first) / (last - first) } else { 0.5 };
            LEFT + 20.0 + (RIGHT - LEFT - 40.0) * share
        };
        let height = BOTTOM + LEGEND_TOP + LEGEND_LINE * series.len() as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let middle = (LEFT + RIGHT) / 2.0;
        text(&mut svg, [middle, 28.0], "middle", "font-size=\"17\"", self.title);
        text(&mut svg, [middle, BOTTOM + 46.0], "middle", "", self.x_label);
        let center = (TOP + BOTTOM) / 2.0;
        text(&mut svg, [20.0, center], "middle", &format!("transform=\"rotate(-90 20 {center})\""), self.y_label);
        for number in 0..=num_steps {
            let value = step * f64::from(number);
            let y = y_of(value);
            line(&mut svg, [LEFT, y, RIGHT, y]);
            text(&mut svg, [LEFT - 8.0, y + 4.0], "end", "", &value.to_string());
        }
        for x in &xs {
            let at = x_of(*x);
            line(&mut svg, [at, TOP, at, BOTTOM]);
            text(&mut svg, [at, BOTTOM + 20.0], "middle", "", &x.to_string());
        }
        for (number, ((name, points), color)) in series.iter().enumerate() {
            let legend_y = BOTTOM + LEGEND_TOP + LEGEND_LINE * number as f64;
            // The first is what the chart is about.
            let width = if number == 0 { 3.0 } else { 1.5 };
            let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
            polyline(&mut svg, color, width, &path.join(" "));
            for (x, y) in points {
                let (cx, cy) = (x_of(*x), y_of(*y));
                let _ = writeln!(svg, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{}\" fill=\"{color}\"/>", width + 1.5);
            }
            polyline(&mut svg, color, width, &format!("{LEFT},{legend_y} {},{legend_y}", LEFT + 30.0));
            text(&mut svg, [LEFT + 38.0, legend_y + 4.0], "start", "", name);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// The distance between lines across and their number, so that they reach the largest value: 1, 2, 2.5 or 5 times a power of ten.
fn ticks(largest: f64) -> (f64, u32) {
    if !(largest > 0.0 && largest.is_finite()) {
        return (1.0, 1);
    }
    let least = largest / MAX_TICKS;
    let decade = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0].map(|factor| factor * decade).into_iter().find(|step| *step >= least);
    let step = step.unwrap_or(10.0 * decade);
    (step, (largest / step).ceil().max(1.0) as u32)
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(svg, "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"#ddd\"/>");
}

fn polyline(svg: &mut String, color: &str, width: f64, points: &str) {
    let _ = writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\"/>");
}

fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, more: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_across_reach_the_largest_value() {
        for largest in [1e-3, 0.7, 1.0, 5.9, 6.0, 6.1, 99.0, 8799.0, 1e6] {
            let (step, num) = ticks(largest);
            let top = step * f64::from(num);
            assert!(num <= 6 && top >= largest * (1.0 - 1e-12) && top < largest + step, "{largest}: {num} of {step}");
        }
        assert_eq!([ticks(0.0), ticks(f64::NAN)], [(1.0, 1); 2]);
        assert_eq!(ticks(8799.0), (2000.0, 5));
    }

    /// All numbers of an attribute, in the order in which they stand.
    fn numbers(svg: &str, attribute: &str) -> Vec<f64> {
        let parts = svg.split(attribute).skip(1);
        parts.map(|part| part.split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn powers_of_two_are_equally_far_apart() {
        let series = vec![("a < b", vec![(1, 10.0), (2, 20.0), (8, 0.0)]), ("empty", Vec::new())];
        let svg = Chart { title: "T & U", x_label: "x", y_label: "y", series }.svg();
        let (xs, ys) = (numbers(&svg, " cx=\""), numbers(&svg, " cy=\""));
        assert_eq!(xs.len(), 3);
        assert!((3.0 * (xs[1] - xs[0]) - (xs[2] - xs[0])).abs() < 0.4, "{xs:?}");
        // 0 is at the bottom; twice the value is twice as high.
        assert!((ys[2] - BOTTOM).abs() < 0.1);
        assert!(((BOTTOM - ys[1]) - 2.0 * (BOTTOM - ys[0])).abs() < 0.3, "{ys:?}");
        assert!(svg.contains("T &amp; U") && svg.contains("a &lt; b") && !svg.contains("empty"));
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn a_single_point_and_none_are_charts_too() {
        let chart = |points| Chart { title: "t", x_label: "x", y_label: "y", series: vec![("a", points)] };
        for svg in [chart(vec![(4, 3.0)]).svg(), chart(Vec::new()).svg()] {
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
        }
    }
}
