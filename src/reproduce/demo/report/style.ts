/** The report's style sheet: one column, light or dark as the reader's system is, fit for print. */
export const STYLE_SHEET = `
:root {
  color-scheme: light dark;
  --ground: #ffffff; --panel: #f5f6f8; --ink: #1b1f24; --soft: #5a6472; --rule: #d9dde3;
  --a: #0b62c4; --b: #b3540e; --good: #17713a; --bad: #b3202a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --panel: #1c2127; --ink: #e4e8ee; --soft: #9aa5b3; --rule: #333a43;
    --a: #6db1ff; --b: #f0a05c; --good: #62c98a; --bad: #ff8087;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
p { max-width: 44rem; margin: .6rem 0; }
.soft, figcaption, .meta { color: var(--soft); }
.meta { font-size: .9rem; }
.warning { border-left: 4px solid var(--b); background: var(--panel); padding: .7rem 1rem; max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .9rem; margin: 1.6rem 0; }
.tile { background: var(--panel); border-radius: .5rem; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.35rem; white-space: nowrap; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .9rem; display: block; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { text-align: left; padding: .32rem 1.4rem .32rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
tr.total td { font-weight: 600; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 1.2rem 0; }
figcaption { font-size: .95rem; margin-bottom: .2rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12.5px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); fill: none; } .axis { stroke: var(--soft); fill: none; }
.series { fill: none; stroke-width: 2; stroke-linejoin: round; }
.series.faint { stroke-width: 1; opacity: .3; }
.series.dots { stroke-width: 1.5; stroke-dasharray: 4 4; }
.a { stroke: var(--a); } .b { stroke: var(--b); }
.mark.a { fill: var(--a); }
.mark.b { fill: var(--b); }
blockquote { margin: 0; background: var(--panel); border-radius: .5rem; padding: .9rem 1.1rem; font-family: Georgia, "Liberation Serif", serif; white-space: pre-wrap; overflow-wrap: anywhere; }
blockquote header { font: 500 .9rem/1.4 system-ui, "Liberation Sans", sans-serif; color: var(--soft); margin-bottom: .5rem; }
blockquote em { color: var(--soft); font-style: normal; }
ul.checks { list-style: none; padding: 0; }
ul.checks li { margin: .55rem 0; padding-left: 1.7rem; position: relative; }
ul.checks li::before { content: "✓"; color: var(--good); font-weight: 700; position: absolute; left: .2rem; }
ul.checks li.failed::before { content: "✗"; color: var(--bad); }
ul.checks span { color: var(--soft); display: block; font-size: .9rem; overflow-wrap: anywhere; }
code { font-size: .9em; overflow-wrap: anywhere; }
@media print { h2 { break-after: avoid; } figure, table, blockquote { break-inside: avoid; } }
`;
