"""The style of every page: a printed report's hierarchy, one accent, numerals that line up."""

# Two families: serif for what is read, sans for what is looked up. Colours are named once and reversed for
# the dark; the line colours differ in lightness too, for print and for colour-blind readers.
CSS = """
:root{color-scheme:light dark;
--paper:#fdfdfb;--ink:#1c1e21;--soft:#62676e;--rule:#deded8;--wash:#f3f3ee;
--line-0:#1f4e79;--line-1:#c26a1b;--line-2:#2f8f7c;--line-3:#a3406f;
--serif:Charter,'Bitstream Charter','Sitka Text',Cambria,Georgia,'Liberation Serif',serif;
--sans:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Liberation Sans',Arial,sans-serif}
@media screen and (prefers-color-scheme:dark){:root{
--paper:#15171a;--ink:#e4e4df;--soft:#9a9fa6;--rule:#33373c;--wash:#1d2024;
--line-0:#86b6e2;--line-1:#e39a52;--line-2:#5cc0ab;--line-3:#d67fa8}}

*{box-sizing:border-box} html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:clamp(1.5rem,5vw,4.5rem) clamp(1rem,4vw,3rem) 5rem;max-width:1120px;
background:var(--paper);color:var(--ink);font:1.0625rem/1.6 var(--serif);overflow-wrap:anywhere}
h1,h2{font-weight:600;line-height:1.15;letter-spacing:-.012em;text-wrap:balance;margin:0}
h1{font-size:clamp(1.9rem,4.5vw,2.9rem)} h2{font-size:1.55rem}
header p{margin:.6rem 0 0;color:var(--soft);font-size:1.125rem}
section{margin-top:4.25rem;padding-top:1.4rem;border-top:1px solid var(--rule)}
p{max-width:42em;margin:.7rem 0;text-wrap:pretty} p.lead{color:var(--soft)}
section>:is(h2,.lead)+:not(.lead){margin-top:1.7rem} nav,figure,dl,table,summary{font-family:var(--sans)}
nav ol{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.5rem;margin:2.2rem 0 0;padding:0;font-size:.875rem}
h3{font-size:1.125rem;font-weight:600;line-height:1.3;margin:2.2rem 0 .5rem}
code{font-size:.85em} pre{font-size:.9375rem;line-height:1.5} sub,sup{line-height:0}
a{color:var(--line-0);text-decoration-thickness:1px;text-underline-offset:.25em}
:is(a,summary,.scroll):focus-visible{outline:2px solid var(--line-0);outline-offset:3px}

.headline{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:1.5rem 2rem;margin:2.6rem 0 0}
.headline dt{font-size:.8125rem;color:var(--soft)}
.headline dd{margin:.1rem 0 0;font-size:2.1rem;line-height:1.15;font-weight:500;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.unit{color:var(--soft);font-weight:400} .headline .unit{font-size:1rem;letter-spacing:0}

figure{margin:0;font-size:.8125rem;line-height:1.4}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.1rem 1.25rem;align-items:baseline}
figcaption strong{font-size:.9375rem;font-weight:600}
.note,.row span,.legend{color:var(--soft);font-variant-numeric:tabular-nums}
.rows,.charts{display:grid;gap:2.6rem 2.25rem}
.rows.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr))}
.charts{grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr))}
.row{display:grid;grid-template-columns:repeat(3,1fr);gap:.55rem .75rem} .row figcaption{grid-column:1/-1}
.row img{display:block;width:100%;height:auto;background:var(--wash)} .row div>span{display:block;margin-top:.35rem}
.pixelated,.atlas image{image-rendering:pixelated}

svg{display:block;width:100%;height:auto;overflow:visible} .chart{display:flex;flex-direction:column;gap:.6rem}
.chart svg{margin-top:auto;font:11px var(--sans);font-variant-numeric:tabular-nums}
.chart text{fill:var(--soft)} .chart .y{text-anchor:end} .chart :is(.x,.name){text-anchor:middle}
.chart path{fill:none;vector-effect:non-scaling-stroke}
path.grid{stroke:var(--rule)} path.base{stroke:var(--soft)}
.c0{color:var(--line-0)} .c1{color:var(--line-1)} .c2{color:var(--line-2)} .c3{color:var(--line-3)}
:is(.line,.dots){stroke:currentColor;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}
.dots{stroke-width:5}
.key{display:inline-block;width:1.1em;margin-right:.4em;vertical-align:.25em;border-top:2px solid}
.legend{display:flex;flex-wrap:wrap;gap:0 1.1rem} .legend b{font-weight:500;color:var(--ink)}
.gaps{fill:none;stroke:var(--paper);stroke-width:.06}
.cells{fill:transparent} .cells :hover{fill:none;stroke:var(--line-1);stroke-width:.12}

table{border-collapse:collapse;font-size:.875rem;line-height:1.45;font-variant-numeric:tabular-nums}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
th{font-weight:400;text-align:left} th,td{padding:.34rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
.pairs{width:100%;max-width:42rem} .pairs:has(thead){max-width:none;table-layout:fixed} .charts>.pairs{align-self:start}
.pairs tr{vertical-align:baseline} .pairs :is(th,td){vertical-align:inherit} .pairs tr>:first-child{width:36%}
.pairs :is(th,td):not(:last-child){padding-right:clamp(.6rem,2vw,2rem)} .pairs :is(tr>th,small){color:var(--soft)}
.pairs thead th{color:var(--ink)} .pairs b{font-weight:600} .pairs small{font-size:.75rem;white-space:nowrap}
header+.pairs{margin-top:2.6rem} header+.pairs td{font-size:clamp(1.2rem,3vw,1.6rem)}
.grid :is(td,th){text-align:right;padding-left:1.5rem;white-space:nowrap} .grid thead th{color:var(--soft)}
.grid :is(td,th):first-child{padding-left:0;text-align:left} .scroll{overflow-x:auto;position:relative}
section>details{margin-top:1.8rem} details>:not(summary){margin-top:.9rem}
summary{cursor:pointer;font-size:.9375rem;color:var(--line-0)}

@media (max-width:560px){section{margin-top:3rem} .grid{font-size:.8125rem} .grid :is(td,th){padding-left:.8rem}
.grid :is(td,th):first-child{white-space:normal;overflow-wrap:break-word;position:sticky;left:0;background:var(--paper)}
.rows:not(.small) .row{grid-template-columns:repeat(2,1fr)}
.rows:not(.small) figcaption{grid-column:2;grid-row:2;flex-direction:column;justify-content:start}
.two:not(.small) figcaption{grid-row:1} .headline{grid-template-columns:1fr 1fr} header+.headline dd{font-size:1.7rem}}
@media print{body{max-width:none;padding:0;font-size:10pt} nav{display:none} section{margin-top:2rem}
figure,tr{break-inside:avoid} h2,.lead{break-after:avoid}
details::details-content{content-visibility:visible;display:block}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
