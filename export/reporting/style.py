"""The look of a report's page."""

STYLE = """
:root { color-scheme: light; --ink: #1d2433; --muted: #667085; --line: #e3e7ee; --soft: #f6f8fb; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 72px; }
h1 { margin: 0 0 20px; font-size: 28px; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 44px 0 8px; font-size: 19px; }
h3 { margin: 32px 0 2px; font-size: 15px; }
h3 .muted { font-weight: 400; margin-left: 6px; }
p { margin: 0; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.muted { color: var(--muted); }
.note { max-width: 82ch; margin-bottom: 16px; color: var(--muted); font-size: 14px; }
.prompt { max-width: 100ch; margin-bottom: 12px; color: var(--muted); font-size: 14px; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; margin: 0; border: 1px solid var(--line); border-radius: 10px;
  background: var(--soft); padding: 6px 4px; }
.facts div { padding: 8px 20px; }
dt { color: var(--muted); font-size: 12px; }
dd { margin: 0; font-weight: 600; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th, td { padding: 7px 14px; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { color: var(--muted); font-size: 12px; font-weight: 600; border-bottom: 2px solid var(--line);
  vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 600; }
tbody tr { border-top: 1px solid var(--soft); }
tbody tr.group { border-top: 1px solid var(--line); }
tbody tr:last-child { border-bottom: 1px solid var(--line); }
.figure { text-align: right; font-variant-numeric: tabular-nums; }
.dot { display: inline-block; width: 10px; height: 10px; margin-right: 8px; border-radius: 50%; }
.good, .bad { padding: 1px 9px; border-radius: 9px; font-size: 13px; }
.good { color: #17663a; background: #e5f5eb; }
.bad { color: #9b1c1c; background: #fde8e8; font-weight: 600; }
.bar { display: block; width: 100%; min-width: 200px; height: 14px; margin-top: 4px; border-radius: 3px; }
.plot { display: block; width: 100%; min-width: 760px; font: 12px system-ui, sans-serif; }
.plot text { fill: #475067; }
.plot .label { font-size: 13px; fill: var(--ink); }
.plot .grid { stroke: #dfe4ec; }
.plot .minor { stroke: #f0f3f7; }
.plot .axis { stroke: #98a2b3; fill: none; }
.plot .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.strip { display: grid; grid-template-columns: repeat(var(--columns), minmax(150px, 1fr)); gap: 14px 12px; }
figure { margin: 0; min-width: 0; }
img { display: block; width: 100%; height: auto; border-radius: 6px; border: 1px solid var(--line); }
figcaption { padding-top: 5px; font-size: 12.5px; line-height: 1.35; overflow-wrap: anywhere; }
figcaption b, figcaption span { display: block; font-weight: 600; }
figcaption span { font-weight: 400; }
@media print { main { padding: 0; max-width: none; } section { break-inside: avoid-page; } }
"""
