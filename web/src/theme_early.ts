// Set the chosen theme before anything is drawn. It runs before the styles are there.
const chosen = localStorage.getItem("understudy.theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset["theme"] = chosen;
