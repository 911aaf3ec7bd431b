// Keeps what was begun, also when the page is left.
const text = document.querySelector("textarea");
text.value = localStorage.getItem("begun") ?? "";
text.addEventListener("input", () => localStorage.setItem("begun", text.value));
text.form.addEventListener("submit", () => localStorage.removeItem("begun"));
