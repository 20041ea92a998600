// Loaded before the page is drawn, so that a theme of the user's choice does not flash in the other one first.
try {
    const theme = JSON.parse(localStorage.getItem("dllama.settings") || "{}").theme;
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
    // No storage, or a damaged one: the system's theme holds.
}
