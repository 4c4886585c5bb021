// Where a view's data come from. A source answers requests, objects with `what` is asked; answers are kept.

const KEPT_ANSWERS = 64;

class Source {
  // `ask(request)` gives a promise of the answer.
  constructor(ask) {
    this.ask = ask;
    this.answers = new Map();
  }

  request(request) {
    const key = keyOf(request);
    const answer = this.answers.get(key) ?? this.ask(request, key);
    this.answers.delete(key);
    this.answers.set(key, answer);
    // What failed may be asked again.
    answer.catch(() => this.answers.delete(key));
    if (this.answers.size > KEPT_ANSWERS) this.answers.delete(this.answers.keys().next().value);
    return answer;
  }

  forget() {
    this.answers.clear();
  }
}

function keyOf(request) {
  return JSON.stringify(Object.keys(request).sort().map((name) => [name, request[name]]));
}

// A page that holds all of its answers.
function pageSource(held) {
  return new Source(async (request, key) => {
    if (!(key in held)) throw new Error("This page does not hold that; a notebook or `augfpn viewer` computes it.");
    const { answer, error } = held[key];
    if (error !== undefined) throw new Error(error);
    return answer;
  });
}

// A page of `augfpn viewer`, whose answers come from the command.
function serverSource(token) {
  return new Source(async (request) => {
    const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token}` };
    let response;
    try {
      response = await fetch("/answer", { method: "POST", headers, body: JSON.stringify(request) });
    } catch {
      throw new Error("The viewer's command does not answer; is it still running?");
    }
    const { answer, error } = await response.json();
    if (error !== undefined) throw new Error(error);
    return answer;
  });
}

// A notebook, whose answers come from the kernel.
function kernelSource(model) {
  const waiting = new Map();
  let sent = 0;
  model.on("msg:custom", ({ number, answer, error }) => {
    const { resolve, reject } = waiting.get(number) ?? {};
    waiting.delete(number);
    if (error !== undefined) reject?.(new Error(error));
    else resolve?.(answer);
  });
  return new Source((request) => new Promise((resolve, reject) => {
    const number = `${Date.now()}-${Math.random()}-${sent++}`;
    waiting.set(number, { resolve, reject });
    model.send({ number, request });
  }));
}
