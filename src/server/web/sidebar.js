// The list of conversations: newest first, by day.

import { h, iconButton, openMenu } from "./dom.js";

const day = 86_400_000;

function groupOf(time, now) {
    const midnight = new Date(now).setHours(0, 0, 0, 0);
    if (time >= midnight) return "Today";
    if (time >= midnight - day) return "Yesterday";
    return time >= midnight - 6 * day ? "This week" : "Older";
}

/// Draws the list. actions: open(conversation), rename(conversation, title), remove, exportMarkdown, exportJson;
/// `isBusy` tells whether an answer is being written.
export function drawSidebar(list, conversations, current, isBusy, actions) {
    const now = Date.now();
    const rows = [];
    let group = "";
    for (const conversation of conversations) {
        const its = groupOf(conversation.updated, now);
        if (its !== group) rows.push(h("h2", {}, its));
        group = its;
        rows.push(row(conversation, conversation.id === current, isBusy(conversation), actions));
    }
    list.replaceChildren(...rows);
}

function row(conversation, isCurrent, busy, actions) {
    const link = h("a", { href: `#${conversation.id}`, "aria-current": isCurrent && "page", title: conversation.title },
        conversation.title);
    const box = h("div", { class: busy ? "conversation busy" : "conversation" }, link);
    const rename = () => {
        const input = h("input", { value: conversation.title, "aria-label": "Title", maxlength: 120 });
        let open = true;
        const close = (keep) => {
            if (!open) return;
            open = false;
            input.replaceWith(link);
            if (keep && input.value.trim()) actions.rename(conversation, input.value.trim());
        };
        input.addEventListener("keydown", (event) => {
            if (event.isComposing) return;
            if (event.key === "Enter") close(true);
            if (event.key === "Escape") { event.stopPropagation(); close(false); }
        });
        input.addEventListener("blur", () => close(true));
        link.replaceWith(input);
        input.select();
    };
    link.addEventListener("dblclick", rename);
    box.append(iconButton("dots", `Actions for ${conversation.title}`, (event) => openMenu(event.currentTarget, [
        ["Rename", "edit", rename],
        ["Export as Markdown", "file", () => actions.exportMarkdown(conversation)],
        ["Export as JSON", "file", () => actions.exportJson(conversation)],
        ["Delete", "trash", () => actions.remove(conversation)],
    ]), { "aria-haspopup": "menu" }));
    return box;
}
