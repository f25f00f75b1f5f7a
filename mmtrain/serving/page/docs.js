// The API as /openapi.json tells it: a card for each route, a table for each body and answer.

import { make } from "./show.js";

const at = (id) => document.getElementById(id);

function resolve(schema, root) {
  const path = schema?.$ref?.slice(2).split("/") ?? [];
  return path.length ? path.reduce((node, name) => node[name], root) : schema;
}

function typeOf(schema, root) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(one, root)).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {}, root)}`;
  if (schema.format === "binary") return "file";
  return schema.type ?? "any";
}

function table(schema, { root, parent }) {
  const { properties = {}, required = [] } = resolve(schema, root) ?? {};
  const wrap = make("div", { cls: "scroll", parent });
  const rows = make("tbody", { parent: make("table", { parent: wrap }) });
  for (const [name, of] of Object.entries(properties)) {
    const row = make("tr", { parent: rows });
    make("th", { text: name, parent: row }).scope = "row";
    const must = required.includes(name) ? ", required" : "";
    make("td", { text: typeOf(of, root) + must, parent: row });
    make("td", { text: of.description ?? resolve(of, root)?.description ?? "", parent: row });
  }
}

function bodies(content, { title, root, parent }) {
  for (const [kind, { schema }] of Object.entries(content ?? {})) {
    make("h3", { text: `${title}: ${kind}`, parent });
    table(schema, { root, parent });
  }
}

function route(path, method, operation, root) {
  const card = make("article", { cls: "card", parent: at("docs") });
  const head = make("h2", { parent: card });
  make("code", { text: `${method.toUpperCase()} ${path}`, parent: head });
  make("p", { text: `${operation.summary}. ${operation.description ?? ""}`, parent: card });
  bodies(operation.requestBody?.content, { title: "Body", root, parent: card });
  bodies(operation.responses["200"].content, { title: "Answer", root, parent: card });
  const others = Object.entries(operation.responses).filter(([status]) => status !== "200");
  const text = others.map(([status, { description }]) => `${status} ${description}`).join(", ");
  if (text) make("p", { text: `Otherwise cause, value and remedy: ${text}.`, cls: "hint", parent: card });
}

function example() {
  const card = make("article", { cls: "card", parent: at("docs") });
  make("h2", { text: "From a shell", parent: card });
  const lines = [
    `curl ${location.origin}/v1/predict -F task=TASK -F file=@picture.png`,
    `curl ${location.origin}/v1/predict -H 'content-type: application/json' -d '{"task": "TASK", "input": "a text"}'`,
    "With a token: -H 'authorization: Bearer TOKEN'",
  ];
  make("pre", { text: lines.join("\n"), parent: card });
}

async function load(token) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch("/openapi.json", { headers });
  at("docs").replaceChildren();
  if (answer.status === 401) {
    at("docs").append(at("token-form").content.cloneNode(true));
    at("docs").firstElementChild.addEventListener("submit", (event) => {
      event.preventDefault();
      load(at("token").value);
    });
    return;
  }
  const root = await answer.json();
  at("about").textContent = `version ${root.info.version}`;
  example();
  for (const [path, methods] of Object.entries(root.paths)) {
    for (const [method, operation] of Object.entries(methods)) route(path, method, operation, root);
  }
  make("h2", { text: "Schemas", parent: at("docs") });
  for (const [name, schema] of Object.entries(root.components?.schemas ?? {})) {
    const card = make("article", { cls: "card", parent: at("docs") });
    make("h3", { text: name, parent: card });
    table(schema, { root, parent: card });
  }
}

load();
