// A small line of the last values, as inline SVG.

import { s } from "./dom.js";

const width = 100;
const height = 26;

/// An SVG whose draw(series, length, label) shows arrays of numbers (null: a gap) over `length` samples, the newest at
/// the right, all on one scale from 0 to the largest.
export function sparkline() {
    const svg = s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" });
    function draw(series, length, label) {
        const top = Math.max(...series.flat().filter((value) => value !== null), 1e-9) * 1.08;
        const shapes = series.map((values, i) => lines(values, length, top, i)).flat();
        svg.replaceChildren(...shapes);
        svg.setAttribute("aria-label", label);
    }
    return { svg, draw };
}

function lines(values, length, top, number) {
    const x = (i) => (width * (length - values.length + i)) / (length - 1);
    const y = (value) => height - 1 - (value / top) * (height - 2);
    const shapes = [];
    let run = [];
    const flush = () => {
        if (run.length > 1) {
            const points = run.map(([i, value]) => `${x(i).toFixed(2)},${y(value).toFixed(2)}`).join(" ");
            if (number === 0)
                shapes.push(s("polygon", { class: "area", points: `${x(run[0][0]).toFixed(2)},${height} ${points} ${x(run.at(-1)[0]).toFixed(2)},${height}` }));
            shapes.push(s("polyline", { class: `line line-${number}`, points }));
        }
        run = [];
    };
    values.forEach((value, i) => (value === null ? flush() : run.push([i, value])));
    flush();
    return shapes;
}
