"use strict";
// Shows openapi.json. Everything reaches the page as text, never as markup.

const el = (tag, attributes, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children.filter((child) => child !== undefined && child !== ""));
  return element;
};

// As much of Markdown as the document uses: paragraphs, lists, code.
const inline = (text) => text.split(/(`[^`]+`)/).map((part) => (/^`.+`$/.test(part) ? el("code", {}, part.slice(1, -1)) : part));
const prose = (text = "") =>
  text.split("\n\n").filter(Boolean).map((paragraph) =>
    paragraph.startsWith("- ")
      ? el("ul", {}, ...paragraph.slice(2).split("\n- ").map((item) => el("li", {}, ...inline(item))))
      : el("p", {}, ...inline(paragraph)));

const show = (api) => {
  const resolve = (thing) => (thing.$ref ? thing.$ref.slice(2).split("/").reduce((found, key) => found[key], api) : thing);

  // A schema as one reads JSON, types in the place of values.
  const shape = (given, indent = "", seen = []) => {
    if (given.$ref && seen.includes(given.$ref)) return given.$ref.split("/").pop();
    const schema = resolve(given);
    const below = given.$ref ? [...seen, given.$ref] : seen;
    if ("const" in schema) return JSON.stringify(schema.const);
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
    const choices = schema.anyOf || schema.oneOf;
    if (choices) return choices.map((choice) => shape(choice, indent, below)).join(" | ");
    if (schema.type === "array") return `[${shape(schema.items || {}, indent, below)}, …]`;
    if (schema.properties) {
      const lines = Object.entries(schema.properties).map(([name, property]) => {
        const optional = (schema.required || []).includes(name) ? "" : "?";
        return `${indent}  "${name}"${optional}: ${shape(property, indent + "  ", below)}`;
      });
      return `{\n${lines.join(",\n")}\n${indent}}`;
    }
    return schema.type === "object" ? "{ any }" : [schema.type || "any"].flat().join(" | ");
  };

  const sample = (given) => {
    const schema = resolve(given);
    if ("default" in schema) return schema.default;
    const choice = schema.const ?? (schema.enum || [])[0];
    if (choice !== undefined) return choice;
    if (schema.anyOf || schema.oneOf) return sample((schema.anyOf || schema.oneOf)[0]);
    if (!schema.properties) return { array: [], object: {}, boolean: false, integer: 1, number: 1, null: null }[schema.type] ?? "…";
    // What must be given; where nothing must, everything, to show what can be.
    const names = schema.required || Object.keys(schema.properties);
    return Object.fromEntries(names.map((name) => [name, sample(schema.properties[name])]));
  };

  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const curl = (path, method, operation) => {
    const query = (operation.parameters || []).map(resolve).filter((parameter) => parameter.in === "query" && parameter.required)
      .map((parameter) => `${parameter.name}=${sample(parameter.schema)}`).join("&");
    const url = new URL(".", location.href).href + path.slice(1) + (query && `?${query}`);
    const parts = [method === "get" ? "curl" : `curl -X ${method.toUpperCase()}`];
    if (operation.security.length) parts.push("-H 'Authorization: SESSION_ID'");
    if (operation.requestBody) {
      parts.push("-H 'Content-Type: application/json'");
      parts.push(`-d ${quoted(JSON.stringify(sample(operation.requestBody.content["application/json"].schema)))}`);
    }
    return [...parts, /[{?&]/.test(url) ? quoted(url) : url].join(" \\\n  ");
  };

  const content = (of) => Object.entries(of || {}).map(([type, { schema }]) =>
    type === "application/problem+json" ? "" : el("pre", { title: type }, shape(schema)));
  const row = (head, ...cells) => el("tr", {}, el("td", {}, ...head), el("td", {}, ...cells));

  const describe = (path, method, operation) => {
    const [demanded] = operation.security; // none: it needs no token
    const who = demanded ? ["signed in", ...Object.values(demanded)[0]].join(", ") : "";
    const body = operation.requestBody;
    const parameters = (operation.parameters || []).map(resolve);
    const answers = Object.entries(operation.responses).map(([status, given]) => {
      const { description, content: of, headers } = resolve(given);
      const more = Object.keys(headers || {}).filter((name) => !["Cache-Control", "X-Request-ID"].includes(name));
      const note = more.length ? el("p", { className: "note" }, `with ${more.join(", ")}`) : "";
      return row([status], ...prose(description), ...content(of), note);
    });
    return el("details", { id: operation.operationId },
      el("summary", {},
        el("span", { className: `method ${method}` }, method.toUpperCase()), el("code", {}, path),
        el("span", { className: "what" }, ...inline(operation.summary)), el("span", { className: "who" }, who)),
      el("div", {},
        ...prose(operation.description),
        el("pre", {}, curl(path, method, operation)),
        ...(parameters.length ? [el("h3", {}, "Parameters"), el("table", {}, ...parameters.map((parameter) =>
          row([el("code", {}, parameter.name)], el("code", {}, shape(parameter.schema)),
            ` in the ${parameter.in}${parameter.required ? "" : ", optional"}`, ...prose(parameter.description))))] : []),
        ...(body ? [el("h3", {}, "Body"), ...prose(body.description), ...content(body.content)] : []),
        el("h3", {}, "Answers"), el("table", {}, ...answers)));
  };

  document.getElementById("version").textContent = api.info.version;
  document.getElementById("about").append(...prose(api.info.description),
    el("p", {}, "The same for tools: ", el("a", { href: "openapi.json" }, "openapi.json"), "."));
  const nav = document.querySelector("nav");
  const main = document.querySelector("main");
  for (const { name } of api.tags) {
    nav.append(el("h2", {}, `/${name}`));
    main.append(el("h2", {}, `/${name}`));
    for (const [path, methods] of Object.entries(api.paths))
      for (const [method, operation] of Object.entries(methods).filter(([, { tags }]) => tags.includes(name))) {
        main.append(describe(path, method, operation));
        nav.append(el("a", { href: `#${operation.operationId}` },
          el("span", { className: `method ${method}` }, method.toUpperCase()), el("span", {}, path)));
      }
  }
  const open = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target) target.open = true;
    target?.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
};

fetch("openapi.json")
  .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`openapi.json: ${answer.status}`))))
  .then(show)
  .catch((error) => document.getElementById("about").append(el("p", {}, `The document cannot be shown: ${error.message}`)));
