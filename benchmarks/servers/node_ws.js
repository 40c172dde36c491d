// Node.js `ws`: `send` to each client, as in its own documentation.
"use strict";

const readline = require("node:readline");
const { WebSocketServer } = require("ws");

const SIZE = 125;
const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
let count = 0;

function payload() {
  count += 1;
  const before = '{"type":"update_job_progress","timestamp":1700000000000,"job_id":"j';
  const stamp = process.hrtime.bigint().toString().padStart(19, "0");
  const after = `","worker_id":"${stamp}","progress":0.25}`;
  const digits = SIZE - before.length - after.length;
  return before + String(count % 1000).padStart(digits, "0") + after;
}

function broadcast() {
  // A string would be converted once per client.
  const data = Buffer.from(payload());
  for (const client of server.clients) {
    if (client.readyState === 1) client.send(data, { binary: false });
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const turn = () => new Promise((resolve) => setImmediate(resolve));

async function burst(events, perTurn) {
  for (let left = events; left > 0; left -= perTurn) {
    const began = performance.now();
    for (let i = 0; i < Math.min(left, perTurn); i += 1) broadcast();
    await turn();
    await sleep(0.5 * (performance.now() - began));
  }
}

server.on("connection", (client) => client.on("message", () => {}));
server.on("listening", () => {
  console.log(`ready ${server.address().port}`);
  const lines = readline.createInterface({ input: process.stdin });
  lines.on("line", async (line) => {
    const [, events, perTurn] = line.split(" ").map(Number);
    await burst(events, perTurn);
    console.log("done {}");
  });
  lines.on("close", () => process.exit(0));
});
