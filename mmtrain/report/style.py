"""The look of `report.html`: one style sheet, by day and in the dark, on a phone and on paper."""

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1c1d1f;
  --soft: #63666b; --line: #e3e3df; --accent: #2a78d6; --good: #14804a; --bad: #b4412b;
  --track: #e9ebee; --code: #f1f1ee; }
@media (prefers-color-scheme: dark) { :root { --page: #131416; --card: #1c1e21; --ink: #e8e8e6;
  --soft: #9b9fa6; --line: #303338; --accent: #5b9cec; --good: #56c288; --bad: #ec8168;
  --track: #30343a; --code: #25282c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .5rem; }
p, figcaption { color: var(--soft); margin: .2rem 0 .8rem; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 0; padding: 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .6rem .9rem; min-width: 8rem; flex: 1; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .5rem .8rem; text-align: left; border-top: 1px solid var(--line);
  vertical-align: middle; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .8rem;
  white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
.bar { position: relative; min-width: 7rem; height: .7rem; border-radius: 4px;
  background: var(--track); }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 4px; background: var(--accent); }
.bar b { position: absolute; top: -.22rem; bottom: -.22rem; width: 3px; margin-left: -1px;
  background: var(--ink); border-radius: 2px; }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.grid.routing { grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
.grid.samples { grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr)); }
figure, .sample { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .7rem .8rem; min-width: 0; }
figcaption { font-size: .85rem; font-weight: 600; color: var(--ink); margin: 0 0 .2rem; }
figure svg { width: 100%; height: auto; display: block; font-family: inherit; }
.sample { font-size: .88rem; overflow-wrap: anywhere; }
.sample img { display: block; height: 5.5rem; max-width: 100%; image-rendering: pixelated;
  border-radius: 6px; background: #000; margin-bottom: .5rem; }
.sample .drawn { display: flex; gap: .4rem; flex-wrap: wrap; }
.sample .drawn img { margin-bottom: .1rem; height: 4.6rem; } .sample .drawn span { flex: 0 1 auto; }
.sample .drawn small { display: block; color: var(--soft); margin-bottom: .4rem; }
.sample audio { width: 100%; margin-bottom: .4rem; }
.sample dl { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: .1rem .7rem; }
.sample dt { color: var(--soft); } .sample dd { margin: 0; }
.sample .soft { font-size: .78rem; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .6rem .9rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow: auto; max-height: 30rem; background: var(--code); padding: .8rem;
  border-radius: 8px; font-size: .78rem; }
code { font-size: .82rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { main { padding: 1.2rem .7rem 3rem; } .later { display: none; }
  th, td { padding: .45rem .5rem; } .bar { min-width: 4rem; } h1 { font-size: 1.4rem; } }
@media print { body { background: #fff; } .sample, figure, tr { break-inside: avoid; } }
"""
