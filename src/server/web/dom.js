// Making elements. Text always goes in as text; HTML only comes out of markdown.js.

/// An element: attributes that are functions become listeners, false and undefined are left out, true is an empty one.
export function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (typeof value === "function") element.addEventListener(name, value);
        else if (value !== false && value !== undefined && value !== null)
            element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
    return element;
}

/// An SVG element.
export function s(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
}

export function icon(name) {
    return s("svg", { "aria-hidden": "true" }, s("use", { href: `#i-${name}` }));
}

export function iconButton(name, label, onclick, more = {}) {
    return h("button", { class: "icon", type: "button", "aria-label": label, title: label, click: onclick, ...more }, icon(name));
}

/// The element with this id; the page has it.
export const byId = (id) => document.getElementById(id);

/// A line at the foot of the page for some seconds, perhaps with something to do about it.
export function toast(text, { action, run, seconds = 5 } = {}) {
    const box = h("div", { class: "toast" }, h("span", {}, text));
    const close = () => box.remove();
    if (action) box.append(h("button", { type: "button", click: () => { close(); run(); } }, action));
    byId("toasts").append(box);
    setTimeout(close, seconds * 1000);
}

/// What screen readers say now.
export function speak(text) {
    byId("spoken").textContent = text;
}

/// Copies and shows so on the button.
export async function copyFrom(button, text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        // Without HTTPS browsers have no clipboard but the old one.
        const area = h("textarea", { class: "hidden" });
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
    const use = button.querySelector("use");
    use.setAttribute("href", "#i-check");
    speak("Copied");
    setTimeout(() => use.setAttribute("href", "#i-copy"), 1500);
}

/// Hands a text to the user as a file.
export function download(name, type, text) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    h("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/// A menu at a button: rows are [label, icon, run].
export function openMenu(button, rows) {
    const menu = byId("menu");
    const close = () => { menu.hidePopover(); button.focus(); };
    menu.replaceChildren(...rows.map(([label, name, run]) =>
        h("button", { type: "button", role: "menuitem", click: () => { close(); run(); } }, icon(name), label)));
    menu.showPopover();
    const at = button.getBoundingClientRect();
    menu.style.left = `${Math.max(8, Math.min(at.left, innerWidth - menu.offsetWidth - 8))}px`;
    menu.style.top = `${Math.max(8, Math.min(at.bottom + 4, innerHeight - menu.offsetHeight - 8))}px`;
    menu.querySelector("button").focus();
    menu.onkeydown = (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const items = [...menu.children];
        items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
    };
}
