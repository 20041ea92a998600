// The page's parts and how they meet.

import { Api, ApiError } from "./api.js";
import { ChatView, count } from "./chat-view.js";
import { startCluster } from "./cluster-view.js";
import {
    addNode, apiMessages, asMarkdown, ConversationStore, newConversation, path, show,
} from "./conversations.js";
import { byId, download, h, speak, toast } from "./dom.js";
import { applyTheme, loadSettings, openSettings, requestFields, saveSettings } from "./settings.js";
import { drawSidebar } from "./sidebar.js";
import { writeAnswer } from "./writer.js";

const settings = loadSettings();
const api = new Api(() => settings.key);
const store = await ConversationStore.open();
const conversations = await store.all();
const running = new Map();  // by conversation id: the AbortController of its answer
const server = { model: "", contextLength: 0, defaults: {} };
const question = byId("question");
const drafts = new Map();  // by conversation id: text not yet sent

let current = newConversation();

const view = new ChatView(byId("messages"), byId("scroll"), byId("to-end"), {
    regenerate(node) {
        // An answer that failed before its first word is not worth a version of its own.
        if (node.state === "failed" && !node.content && !node.reasoning) delete current.nodes[node.id];
        answer(current, current.nodes[node.parent]);
    },
    edit: (node, text) => answer(current, addNode(current, node.parent, { role: "user", content: text })),
    showSibling: (node) => { show(current, node); store.save(current); draw(); },
    openSettings: settingsDialog,
});

// Conversations

function openConversation(id) {
    drafts.set(current.id, question.value);
    current = conversations.find((conversation) => conversation.id === id) ?? newConversation();
    question.value = drafts.get(current.id) ?? "";
    fitQuestion();
    document.body.classList.remove("sidebar-open");
    draw();
    question.focus();
}

function draw() {
    view.show(current, welcome());
    drawFrame();
}

function drawFrame() {
    byId("title").textContent = current.title || "New conversation";
    document.title = current.title ? `${current.title} · dllama` : "dllama";
    drawSidebar(byId("conversations"), conversations, current.id, (conversation) => running.has(conversation.id), {
        rename(conversation, title) {
            conversation.title = title;
            store.save(conversation);
            drawFrame();
        },
        remove: removeConversation,
        exportMarkdown: (c) => download(`${fileName(c)}.md`, "text/markdown", asMarkdown(c)),
        exportJson: (c) => download(`${fileName(c)}.json`, "application/json", JSON.stringify(c, null, 2)),
    });
    const busy = running.has(current.id);
    const send = byId("send");
    send.setAttribute("aria-label", busy ? "Stop" : "Send");
    send.title = busy ? "Stop (Esc)" : "Send (Enter)";
    send.classList.toggle("stop", busy);
    send.querySelector("use").setAttribute("href", busy ? "#i-stop" : "#i-send");
    send.disabled = !busy && !question.value.trim();
    const think = byId("think");
    think.querySelector("span").textContent = { auto: "Thinking: auto", on: "Thinking: on", off: "Thinking: off" }[settings.thinking];
    think.classList.toggle("on", settings.thinking === "on");
    think.title = "Whether the model thinks before it answers";
    drawContext();
}

function drawContext() {
    const used = path(current).reduce((most, node) => node.stats?.contextTokens ?? most, 0);
    byId("context").textContent = used && server.contextLength ? `${count(used)} of ${count(server.contextLength)} tokens` : "";
    byId("context").classList.toggle("warn", used > 0.9 * server.contextLength);
}

const fileName = (conversation) => conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";

function removeConversation(conversation) {
    running.get(conversation.id)?.abort();
    const at = conversations.indexOf(conversation);
    conversations.splice(at, 1);
    store.remove(conversation.id);
    if (conversation === current) location.hash = "";
    else drawFrame();
    toast(`Deleted “${conversation.title}”`, {
        action: "Undo",
        seconds: 8,
        run() {
            conversations.splice(at, 0, conversation);
            store.save(conversation);
            location.hash = conversation.id;
            drawFrame();
        },
    });
}

function welcome() {
    const ideas = ["Tell me a story about a little dragon who is afraid of fire",
        "Explain in simple words why the sky is blue", "Write a Python function that merges two sorted lists"];
    return h("div", { class: "welcome" }, h("img", { src: "/web/icon.svg", alt: "", width: 44, height: 44 }),
        h("h2", {}, "What would you like to know?"),
        h("p", { class: "quiet" }, server.model ? `${server.model} answers, on your own machines.` : "The model runs on your own machines."),
        h("div", { class: "ideas" }, ...ideas.map((idea) =>
            h("button", { type: "button", click: () => ask(idea) }, idea))));
}

// Questions and answers

function ask(text) {
    if (running.has(current.id) || !text.trim()) return;
    const last = path(current).at(-1);
    const node = addNode(current, last?.id ?? null, { role: "user", content: text.trim() });
    if (!conversations.includes(current)) {
        conversations.unshift(current);
        history.replaceState(null, "", `#${current.id}`);
    }
    question.value = "";
    drafts.delete(current.id);
    fitQuestion();
    answer(current, node);
}

async function answer(conversation, asked) {
    running.get(conversation.id)?.abort();
    const controller = new AbortController();
    running.set(conversation.id, controller);
    const messages = apiMessages(conversation, asked, settings.system.trim());
    const node = addNode(conversation, asked.id, { role: "assistant", state: "writing", model: server.model });
    conversations.sort((a, b) => b.updated - a.updated);
    store.save(conversation);
    if (conversation === current) draw();
    speak("The answer is being written");
    const request = { model: server.model || undefined, messages, ...requestFields(settings) };
    await writeAnswer(api, request, node, controller.signal, () => conversation === current && view.update(node),
        () => conversations.includes(conversation) && store.save(conversation));
    if (running.get(conversation.id) === controller) running.delete(conversation.id);
    if (conversations.includes(conversation)) store.save(conversation);
    speak(node.state === "failed" ? `${node.error.title}. ${node.error.detail}` : node.state === "stopped" ? "Stopped" : "The answer is complete");
    if (node.state === "done" && !server.model) connect();
    drawFrame();
}

function stop() {
    running.get(current.id)?.abort();
}

// The server

async function connect() {
    for (let wait = 1000; ; wait = Math.min(wait * 2, 10_000)) {
        try {
            const models = await api.get("/v1/models");
            server.model = models.data?.[0]?.id ?? "";
            const props = await api.get("/props");
            const given = props.default_generation_settings ?? {};
            server.contextLength = given.n_ctx ?? 0;
            server.defaults = { ...given.params, max_tokens: undefined };
            for (const name of ["temperature", "top_p"])
                if (server.defaults[name] !== undefined) server.defaults[name] = Number(server.defaults[name].toFixed(3));
            byId("model").textContent = server.model;
            byId("model").classList.remove("error");
            if (!path(current).length) draw();
            drawFrame();
            return;
        } catch (error) {
            if (!(error instanceof ApiError)) throw error;
            byId("model").textContent = error.message;
            byId("model").classList.add("error");
            if (error.kind === "key") return;
            await new Promise((resolve) => setTimeout(resolve, wait));
        }
    }
}

function settingsDialog() {
    const keyBefore = settings.key;
    openSettings(byId("settings"), settings, server.defaults, () => {
        saveSettings(settings);
        applyTheme(settings.theme);
        drawTheme();
        drawFrame();
    });
    byId("settings").onclose = () => { if (settings.key !== keyBefore) connect(); };
}

function drawTheme() {
    const button = byId("theme");
    const name = { system: "auto", light: "sun", dark: "moon" }[settings.theme];
    button.querySelector("use").setAttribute("href", `#i-${name}`);
    button.title = `Colours: ${settings.theme}`;
    button.setAttribute("aria-label", button.title);
}

// Keys and buttons

function fitQuestion() {
    question.style.height = "auto";
    question.style.height = `${Math.min(question.scrollHeight, innerHeight * 0.4)}px`;
    byId("send").disabled = !running.has(current.id) && !question.value.trim();
}

question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
    // While an input method composes a word, Enter chooses it.
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        ask(question.value);
    }
    if (event.key === "ArrowUp" && !question.value) {
        const buttons = byId("messages").querySelectorAll(".user .actions button:last-child");
        if (buttons.length) event.preventDefault();
        [...buttons].at(-1)?.click();
    }
});
document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !byId("settings").open && !byId("menu").matches(":popover-open")) {
        if (running.has(current.id)) stop();
        else document.body.classList.remove("sidebar-open");
    }
    if (event.altKey && event.code === "KeyN") {
        event.preventDefault();
        byId("new-chat").click();
    }
    if (event.key === "/" && !event.target.closest("input, textarea, dialog")) {
        event.preventDefault();
        question.focus();
    }
});
byId("send").addEventListener("click", () => (running.has(current.id) ? stop() : ask(question.value)));
byId("new-chat").addEventListener("click", () => {
    if (location.hash) location.hash = "";
    else openConversation("");
});
byId("brand").addEventListener("click", (event) => { event.preventDefault(); byId("new-chat").click(); });
byId("open-settings").addEventListener("click", settingsDialog);
byId("theme").addEventListener("click", () => {
    settings.theme = { system: "light", light: "dark", dark: "system" }[settings.theme];
    saveSettings(settings);
    applyTheme(settings.theme);
    drawTheme();
});
byId("think").addEventListener("click", () => {
    settings.thinking = { auto: "on", on: "off", off: "auto" }[settings.thinking];
    saveSettings(settings);
    drawFrame();
});
const narrow = matchMedia("(max-width: 800px)");
byId("show-sidebar").addEventListener("click", () => {
    document.body.classList.remove("sidebar-hidden");
    document.body.classList.toggle("sidebar-open", narrow.matches);
});
byId("hide-sidebar").addEventListener("click", () => {
    document.body.classList.remove("sidebar-open");
    document.body.classList.toggle("sidebar-hidden", !narrow.matches);
});
byId("shade").addEventListener("click", () => document.body.classList.remove("sidebar-open"));
addEventListener("hashchange", () => openConversation(location.hash.slice(1)));

drawTheme();
startCluster(api, byId("cluster"), byId("open-cluster"));
openConversation(location.hash.slice(1));
connect();
