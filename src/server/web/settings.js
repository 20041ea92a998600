// What the user has set, and the dialog for it. An empty field leaves the choice to the server.

import { h, icon } from "./dom.js";

const storageKey = "dllama.settings";
const initial = { theme: "system", system: "", temperature: "", top_p: "", max_tokens: "", thinking: "auto", key: "" };

export function loadSettings() {
    try {
        return { ...initial, ...JSON.parse(localStorage.getItem(storageKey) ?? "{}") };
    } catch {
        return { ...initial };
    }
}

export function saveSettings(settings) {
    try {
        localStorage.setItem(storageKey, JSON.stringify(settings));
    } catch {
        // Without storage they hold until the page is closed.
    }
}

export function applyTheme(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
}

/// The fields of a request that the settings stand for.
export function requestFields(settings) {
    const fields = {};
    for (const name of ["temperature", "top_p", "max_tokens"])
        if (settings[name] !== "") fields[name] = Number(settings[name]);
    if (settings.thinking !== "auto") fields.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
    return fields;
}

const numbers = [
    ["temperature", "Temperature", 0, 2, 0.05, "0 always takes the most likely token"],
    ["top_p", "Top p", 0, 1, 0.05, "The likeliest tokens whose probabilities add up to this"],
    ["max_tokens", "Most tokens of an answer", 1, 1_000_000, 1, "Up to the context's end where empty"],
];

function numberField([name, label, min, max, step, hint], settings, defaults) {
    const input = h("input", { id: `set-${name}`, name, type: "number", min, max, step: name === "max_tokens" ? 1 : "any",
        inputmode: "decimal", placeholder: defaults[name] ?? "server's choice", value: settings[name] });
    const row = h("div", { class: "field" }, h("label", { for: `set-${name}` }, label), input, h("p", { class: "quiet" }, hint));
    if (name === "max_tokens") return row;
    const slider = h("input", { type: "range", min, max, step, "aria-label": label, tabindex: "-1" });
    slider.value = settings[name] === "" ? defaults[name] ?? max : settings[name];
    slider.addEventListener("input", () => { input.value = slider.value; input.dispatchEvent(new Event("input", { bubbles: true })); });
    input.addEventListener("input", () => { if (input.value !== "") slider.value = input.value; });
    input.before(slider);
    return row;
}

function choice(name, label, options, settings, hint) {
    return h("fieldset", { class: "field" }, h("legend", {}, label),
        h("div", { class: "choice" }, ...options.map(([value, text]) =>
            h("label", {}, h("input", { type: "radio", name, value, checked: settings[name] === value }), h("span", {}, text)))),
        hint && h("p", { class: "quiet" }, hint));
}

/// Opens the dialog. Each change is taken at once: change(settings). `defaults` are the server's, by field.
export function openSettings(dialog, settings, defaults, change) {
    const form = h("form", { method: "dialog", novalidate: true },
        h("div", { class: "bar" }, h("h2", { id: "settings-title" }, "Settings"),
            h("button", { class: "icon", "aria-label": "Close" }, icon("close"))),
        h("div", { class: "field" }, h("label", { for: "set-system" }, "System prompt"),
            h("textarea", { id: "set-system", name: "system", rows: 3, placeholder: "What the model should know in each conversation" },
                settings.system)),
        ...numbers.map((field) => numberField(field, settings, defaults)),
        choice("thinking", "Thinking", [["auto", "Model's choice"], ["on", "On"], ["off", "Off"]], settings,
            "For models that can think before they answer"),
        choice("theme", "Colours", [["system", "System"], ["light", "Light"], ["dark", "Dark"]], settings),
        h("div", { class: "field" }, h("label", { for: "set-key" }, "API key"),
            h("input", { id: "set-key", name: "key", type: "password", autocomplete: "off", value: settings.key,
                placeholder: "Only where the server asks for one" }),
            h("p", { class: "quiet" }, "Kept in this browser, sent to this server alone")),
        h("p", { class: "quiet about" }, "Conversations stay in this browser. Contains ",
            ...[["marked", "node-marked"], ["DOMPurify", "node-dompurify"], ["highlight.js", "libjs-highlight.js"]].flatMap(
                ([name, file], i) => [i ? ", " : "", h("a", { href: `/web/lib/${file}.txt`, target: "_blank" }, name)])));
    form.addEventListener("input", ({ target }) => {
        if (!target.name) return;
        const good = target.type !== "number" || target.checkValidity();
        target.setAttribute("aria-invalid", String(!good));
        if (!good) return;
        settings[target.name] = target.value;
        change(settings);
    });
    dialog.replaceChildren(form);
    dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
    dialog.showModal();
}
