// Conversations as trees: an edited question or a second answer is a sibling of the first, and nothing is lost.
// A node is {id, parent, role, content, reasoning, state, ...}; state: writing, done, stopped, failed.

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => (b % 36).toString(36)).join("")
    + Date.now().toString(36);

export function newConversation() {
    const now = Date.now();
    return { id: newId(), title: "", created: now, updated: now, nodes: {}, leaf: null };
}

/// Adds a node under `parent` (null: the root) and shows it.
export function addNode(conversation, parent, node) {
    const added = { id: newId(), parent, created: Date.now(), state: "done", content: "", reasoning: "", ...node };
    conversation.nodes[added.id] = added;
    conversation.leaf = added.id;
    conversation.updated = Date.now();
    if (!conversation.title && node.role === "user") conversation.title = titleOf(node.content);
    return added;
}

/// The nodes that are shown, from the first question on.
export function path(conversation) {
    const nodes = [];
    for (let node = conversation.nodes[conversation.leaf]; node; node = conversation.nodes[node.parent]) nodes.push(node);
    return nodes.reverse();
}

/// Those with the same parent, oldest first.
export function siblings(conversation, node) {
    return Object.values(conversation.nodes).filter((other) => other.parent === node.parent)
        .sort((a, b) => a.created - b.created);
}

/// Shows this node and, below it, the newest of each step.
export function show(conversation, node) {
    for (;;) {
        const children = Object.values(conversation.nodes).filter((other) => other.parent === node.id);
        if (!children.length) break;
        node = children.reduce((a, b) => (b.created > a.created ? b : a));
    }
    conversation.leaf = node.id;
}

/// What the API gets: the path up to `node`. Where an answer failed before it had a word, the questions around it are
/// one: several publishers' formats refuse two questions in a row.
export function apiMessages(conversation, node, systemPrompt) {
    const messages = systemPrompt ? [{ role: "system", content: systemPrompt }] : [];
    const nodes = [];
    for (; node; node = conversation.nodes[node.parent]) nodes.push(node);
    for (const { role, content, reasoning } of nodes.reverse()) {
        if (role === "assistant" && !content && !reasoning) continue;
        const last = messages.at(-1);
        if (role === "user" && last?.role === "user") last.content += `\n\n${content}`;
        else messages.push(role === "assistant" && reasoning ? { role, content, reasoning_content: reasoning } : { role, content });
    }
    return messages;
}

export function titleOf(text) {
    const line = text.trim().split("\n", 1)[0].replace(/\s+/g, " ");
    return line.length > 48 ? `${line.slice(0, 47).trimEnd()}…` : line;
}

export function asMarkdown(conversation) {
    const parts = [`# ${conversation.title}`];
    for (const node of path(conversation)) {
        parts.push(node.role === "user" ? "## Question" : "## Answer");
        if (node.reasoning) parts.push(node.reasoning.trim().replace(/^/gm, "> "));
        parts.push(node.content.trim());
    }
    return `${parts.join("\n\n")}\n`;
}

/// Conversations in IndexedDB; in memory alone where the browser has none.
export class ConversationStore {
    static async open() {
        const store = new ConversationStore();
        try {
            const request = indexedDB.open("dllama", 1);
            request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
            store.db = await settled(request);
        } catch {
            store.db = null;
        }
        return store;
    }

    /// Newest first. An answer that was being written when the page went away is stopped.
    async all() {
        if (!this.db) return [];
        const list = await settled(this.transaction("readonly").getAll());
        for (const conversation of list)
            for (const node of Object.values(conversation.nodes))
                if (node.state === "writing") node.state = "stopped";
        return list.sort((a, b) => b.updated - a.updated);
    }

    async save(conversation) {
        if (this.db) await settled(this.transaction("readwrite").put(conversation));
    }

    async remove(id) {
        if (this.db) await settled(this.transaction("readwrite").delete(id));
    }

    transaction(mode) {
        return this.db.transaction("conversations", mode).objectStore("conversations");
    }
}

const settled = (request) => new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
});
