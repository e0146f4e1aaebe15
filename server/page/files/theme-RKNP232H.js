var e=localStorage.getItem("understudy.theme");(e==="light"||e==="dark")&&(document.documentElement.dataset.theme=e);
