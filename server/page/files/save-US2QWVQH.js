import{a as k}from"./chunk-RJDOKPY2.js";import{a as x,c as $,f as w}from"./chunk-QLLSVKGL.js";import{c as f,d as h}from"./chunk-4IWTNMGI.js";import{e as u}from"./chunk-QKH4YY6X.js";import"./chunk-SQE76S5B.js";var y=`
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
`,v="EoI3WF+FwSxJMwGBaYZ/waXzjvsNzfBKY4WG3NI3Yl0=";function T({messages:t,trace:e,model:r,figures:s,date:a}){let i=`Answer of ${r}`,l=`default-src 'none'; style-src 'sha256-${v}'; base-uri 'none'; form-action 'none'`,o=t.map(c=>p(c.role,`<p class="text">${n(c.content)}</p>`)),d=e.text("reasoning")?p("reasoning",b(e.stretches("reasoning"))):"";return`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${n(l)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>${n(i)}</title>
<style>${y}</style>
</head>
<body>
<main>
<h1>${n(i)}</h1>
<p class="muted"><time datetime="${a.toISOString()}">${n(a.toISOString().slice(0,16).replace("T"," "))} UTC</time></p>
${o.join(`
`)}
${d}
${p("assistant",b(e.stretches("content")))}
<h2>Where the tokens come from</h2>
${j(e)}
<h2>Passes</h2>
<p class="muted">Each bar is a forward pass of the model; its height is the number of tokens that it brought.</p>
${I(e)}
<dl>${s.map(([c,m])=>`<div><dt>${n(c)}</dt><dd>${n(m)}</dd></div>`).join("")}</dl>
</main>
</body>
</html>
`}function n(t){let e={"&":"&amp;","<":"&lt;",">":"&gt;",'"':"&quot;","'":"&#39;"};return t.replace(/[&<>"']/g,r=>e[r]).replace(/[\0-\x08\x0b-\x1f\x7f]/g,"�")}function p(t,e){return`<section class="message"><h2>${n(t)}</h2>${e}</section>`}function O(t,e){return t==="plain"?n(e):`<span class="look ${t}">${n(e)}</span>`}function b(t){return`<p class="text">${t.map(e=>O(e.look,e.text)).join("")}</p>`}function j(t){return`<ul>${t.shares().map(({source:r,look:s,count:a,share:i})=>{let l=`${a} (${Math.round(100*i)} %)`;return`<li><span class="look ${s}">${n(h(r))}</span> ${l}</li>`}).join("")}</ul>`}var F=10,S=13,g=7;function I(t){let e=x(t),r=Math.max(1,...e.map(o=>o.tokens.length)),s=Math.max(1,e.length*S),a=e.map((o,d)=>{let c=o.tokens.map((m,A)=>{let E=(r-1-A)*g;return`<rect class="${f(m.source)}" x="${d*S}" y="${E}" width="${F}" height="${g}"/>`});return`<g><title>${n(w(o))}</title>${c.join("")}</g>`}),i=e.reduce((o,d)=>o+$(d.pass),0),l=`${u(e.length,"pass")} in ${i.toFixed(1)} s`;return`<div class="bars"><svg role="img" aria-label="${l}" width="${s}" height="${r*g}">${a.join("")}</svg></div>
<p class="muted">${l}</p>`}function q(t,e,r){let s=e.model??"a model",a=new Date,i=T({messages:t.map(({role:l,content:o})=>({role:String(l),content:Y(o)})),trace:r,model:s,date:a,figures:z(e)});k(`${C(s)}-${a.toISOString().slice(0,10)}.html`,i,"text/html")}function Y(t){return typeof t=="string"?t:""}function z({figures:t,fingerprint:e}){let r=[];return t!==null&&(r.push(["Tokens",String(t.tokens)]),r.push(["Tokens a second",t.tokensPerSecond.toFixed(1)]),r.push(["Tokens a pass",t.tokensPerPass.toFixed(1)]),t.seed!==null&&r.push(["Seed",String(t.seed)])),e!==null&&r.push(["Fingerprint",e]),r}function C(t){return t.replace(/[^\w.-]+/g,"-").slice(0,60)}export{q as saveAnswer};
