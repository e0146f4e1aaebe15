/** The style sheet of an exported answer, and its checksum, which a test holds. */

export const STYLE = `
:root{color-scheme:light dark;--text:light-dark(#26231e,#ebe7de);--paper:light-dark(#fbfaf7,#1a1917);--muted:light-dark(#69645a,#a8a298);--line:light-dark(#e3dfd5,#383632)}
body{margin:0;background:var(--paper);color:var(--text);font:100%/1.6 ui-sans-serif,system-ui,sans-serif}
main{max-width:46rem;margin:0 auto;padding:2rem 1rem}
h1{font-size:1.4rem;margin:0}
h2{font-size:.95rem;margin:1.5rem 0 .4rem}
.muted{color:var(--muted);font-size:.85rem;margin:.2rem 0}
.message{border-top:1px solid var(--line);margin-top:1rem}
.message h2{margin-top:.8rem;color:var(--muted)}
.message h2::first-letter{text-transform:uppercase}
.text{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
ul{list-style:none;padding:0;margin:0;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem}
.bars{overflow-x:auto}
dl{display:flex;flex-wrap:wrap;gap:.6rem 2rem}
dt{color:var(--muted);font-size:.85rem}
dd{margin:0}
.look{text-decoration:underline 2px;text-underline-offset:.2em;text-decoration-skip-ink:none}
.look.plain{text-decoration:none}
.draft-1{--c:light-dark(#d9ecd6,#23402a);--l:light-dark(#2f6b3c,#8fcf9d)}
.draft-2{--c:light-dark(#d8e6f6,#22364d);--l:light-dark(#2b5c8a,#93bfe8);text-decoration-style:dotted!important}
.draft-3{--c:light-dark(#f7e6c4,#45351a);--l:light-dark(#8a4b08,#e5b478);text-decoration-style:dashed!important}
.draft-4{--c:light-dark(#f6dbe0,#4a272e);--l:light-dark(#8c2f3d,#ec97a3);text-decoration-style:double!important}
.grammar{--c:light-dark(#e9def5,#372a4a);--l:light-dark(#65409a,#c3a4ec);text-decoration-style:wavy!important}
.prediction{--c:light-dark(#d3efee,#1c403f);--l:light-dark(#17676a,#86d0cf);text-decoration-line:underline overline!important}
.continued{--c:light-dark(#ebe8e0,#33312d);--l:light-dark(#69645a,#a8a298)}
.look:not(.plain){background:var(--c);text-decoration-color:var(--l)}
rect{fill:var(--l,var(--muted));stroke:var(--paper)}
`;

export const STYLE_CHECKSUM = "EoI3WF+FwSxJMwGBaYZ/waXzjvsNzfBKY4WG3NI3Yl0=";
