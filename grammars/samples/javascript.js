// A small HTTP router: patterns with named parameters, middleware, and JSON helpers.
import { createServer } from "node:http";

class HttpError extends Error {
  constructor(status, message) {
    super(message);
    this.name = "HttpError";
    this.status = status;
  }
}

/** Turns "/users/:id" into a regular expression and the names of its parameters. */
function compilePattern(pattern) {
  const names = [];
  const source = pattern
    .split("/")
    .map((segment) => {
      if (!segment.startsWith(":")) {
        return segment.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
      }
      names.push(segment.slice(1));
      return "([^/]+)";
    })
    .join("/");
  return { regexp: new RegExp(`^${source}/?$`), names };
}

export class Router {
  #routes = [];
  #middleware = [];

  use(handler) {
    this.#middleware.push(handler);
    return this;
  }

  on(method, pattern, handler) {
    this.#routes.push({ method, handler, ...compilePattern(pattern) });
    return this;
  }

  get(pattern, handler) {
    return this.on("GET", pattern, handler);
  }

  post(pattern, handler) {
    return this.on("POST", pattern, handler);
  }

  match(method, path) {
    for (const route of this.#routes) {
      const found = route.method === method && route.regexp.exec(path);
      if (found) {
        const values = found.slice(1).map(decodeURIComponent);
        const params = Object.fromEntries(route.names.map((name, i) => [name, values[i]]));
        return { handler: route.handler, params };
      }
    }
    return null;
  }

  async handle(request, response) {
    const url = new URL(request.url, `http://${request.headers.host ?? "localhost"}`);
    try {
      for (const middleware of this.#middleware) {
        await middleware(request, response);
      }
      const match = this.match(request.method, url.pathname);
      if (!match) {
        throw new HttpError(404, `no route for ${request.method} ${url.pathname}`);
      }
      const body = await match.handler({ request, params: match.params, query: url.searchParams });
      sendJson(response, 200, body);
    } catch (error) {
      const status = error instanceof HttpError ? error.status : 500;
      sendJson(response, status, { error: error.message });
    }
  }

  listen(port, callback) {
    return createServer((request, response) => this.handle(request, response)).listen(port, callback);
  }
}

function sendJson(response, status, body) {
  const text = JSON.stringify(body, null, 2);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
  response.end(text);
}
