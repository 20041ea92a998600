// Markdown to DOM. A model's text is hostile until proved otherwise: HTML in it is shown as text, what marked makes of
// the rest goes through DOMPurify with a short list of tags, and the page's CSP runs no script but its own.

import { marked } from "/web/lib/marked.js";
import DOMPurify from "/web/lib/purify.js";
import { h, copyFrom, icon } from "./dom.js";

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => text.replace(/[&<>"']/g, (c) => escapes[c]);

marked.use({
    headerIds: false,
    mangle: false,
    renderer: {
        // Models write these few in tables and formulas.
        html: (text) => (/^<\/?(br|sub|sup|kbd)\s*\/?>$/i.test(text.trim()) ? text : escaped(text)),
        // An image would be a request to wherever the answer says: it becomes a link.
        image: (href, _title, text) => `<a href="${escaped(href ?? "")}">${escaped(text || href || "")}</a>`,
        checkbox: (checked) => (checked ? "☑ " : "☐ "),
    },
});

// Debian 12's DOMPurify 2.4.1+dfsg+~2.4.0-2+deb12u1 asks this undeclared name for a depth, once before its walk over the
// nodes, and fails for each text without it. The walk itself counts depths rightly.
self.shadowNode ??= {};

const allowed = {
    ALLOWED_TAGS: ["p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "del", "sub", "sup", "kbd", "code",
        "pre", "blockquote", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "a"],
    ALLOWED_ATTR: ["href", "title", "class", "align", "start"],
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    ADD_URI_SAFE_ATTR: ["align", "start"],
    RETURN_DOM_FRAGMENT: true,
};
const highlighted = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };

// Larger blocks are left plain while they grow: each frame would colour all of them anew.
const maxGrowingCode = 20_000;

let highlighter = null;
let loading = null;
/// highlight.js is large, so it comes with the first code block.
function loadHighlighter() {
    loading ??= import("/web/lib/highlight.js").then(() => { highlighter = self.hljs; });
    return loading;
}

function colour(code, language) {
    const text = code.textContent;
    const { value } = highlighter.highlight(language, text, true);
    code.replaceChildren(DOMPurify.sanitize(value, highlighted));
}

function finishCode(pre, growing) {
    const code = pre.querySelector("code") ?? pre;
    const language = /(?:^|\s)language-([\w+#.-]+)/.exec(code.className)?.[1]?.toLowerCase() ?? "";
    code.removeAttribute("class");
    const text = code.textContent.replace(/\n$/, "");
    const copy = h("button", { type: "button", class: "icon", "aria-label": "Copy the code", title: "Copy" }, icon("copy"));
    copy.addEventListener("click", () => copyFrom(copy, text));
    pre.tabIndex = 0;
    const box = h("div", { class: "code" }, h("div", { class: "bar" }, h("span", {}, language), copy));
    pre.replaceWith(box);
    box.append(pre);
    if (!language || (growing && text.length > maxGrowingCode)) return;
    const apply = () => highlighter.getLanguage(language) && colour(code, language);
    if (highlighter) apply();
    else loadHighlighter().then(apply, () => {});
}

function finish(fragment, growing) {
    for (const link of fragment.querySelectorAll("a")) {
        if (!link.hasAttribute("href")) {
            link.replaceWith(...link.childNodes);
            continue;
        }
        link.target = "_blank";
        link.rel = "noopener noreferrer nofollow";
    }
    for (const element of fragment.querySelectorAll("[class]"))
        if (!element.matches("pre > code")) element.removeAttribute("class");
    for (const pre of fragment.querySelectorAll("pre")) finishCode(pre, growing);
    for (const table of fragment.querySelectorAll("table")) {
        const box = h("div", { class: "table", tabindex: "0" });
        table.replaceWith(box);
        box.append(table);
    }
    return fragment;
}

/// Renders a growing text into `element`: update(text, growing) makes anew only the blocks that have changed, so that a
/// selection in finished ones stays and a long answer costs no more than its end.
export function markdownView(element) {
    let shown = [];  // source of each block
    return function update(text, growing) {
        const tokens = marked.lexer(text);
        const links = tokens.links;
        const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
        let same = 0;
        while (same < shown.length && same < blocks.length && shown[same] === blocks[same].raw) same++;
        // The last block is finished once more when the text has ended.
        if (!growing) same = Math.min(same, Math.max(0, blocks.length - 1));
        while (element.childNodes.length > same) element.lastChild.remove();
        for (const token of blocks.slice(same)) {
            const html = marked.parser(Object.assign([token], { links }));
            element.append(h("div", { class: "block" }, finish(DOMPurify.sanitize(html, allowed), growing)));
        }
        shown = blocks.map((token) => token.raw);
    };
}
