// Adds numbers for whoever asks.
import { serve } from "@hono/node-server";
import { Hono } from "hono";
import pino from "pino";

const log = pino({ timestamp: false, base: null });
const app = new Hono();

app.get("/up", (c) => c.text("up\n"));
app.get("/sum/:numbers{[0-9+]+}", (c) => {
  const numbers = c.req.param("numbers").split("+").map(Number);
  return c.json({ sum: numbers.reduce((sum, number) => sum + number, 0) });
});

async function check() {
  const answer = await (await app.request("/sum/1+2+39")).json();
  if (answer.sum !== 42) throw new Error(`wrong: ${JSON.stringify(answer)}`);
}

if (process.argv[2] === "--check") check();
else serve({ fetch: app.fetch, port: 8080 }, ({ port }) => log.info({ port }, "listening"));
