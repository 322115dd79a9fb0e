/* What a page of plain forms cannot do alone: keys, the live stream, small courtesies.
   Without it every form and link still works. */
"use strict";

(() => {
  /* How often it is said that somebody types; far less than the minute after which an account may lock. */
  const HERE_MS = 20000;
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const typing = (element) =>
    element instanceof HTMLElement &&
    (element.matches("input:not([type=checkbox], [type=radio]), textarea, select") || element.isContentEditable);

  /* Long waits say so, and a form is sent once. */
  document.addEventListener("submit", (event) => {
    const form = event.target;
    const words = form.dataset.long;
    if (!words || $(".waiting", form)) return;
    const line = document.createElement("p");
    line.className = "waiting quiet";
    line.setAttribute("role", "status");
    line.textContent = words;
    form.append(line);
  });
  document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
    if (ctx.request.form) all(":scope > .waiting", ctx.request.form).forEach((line) => line.remove());
  });

  /* Asking for a page. What was asked last holds: an answer that comes after a newer one's changes
     the page no more, and only what it says is shown. */
  const underWay = new Set();
  let asked = 0;
  let shown = 0;
  const asksByItself = (event) => event.detail.ctx?.sourceElement?.dataset?.poll !== undefined;
  const isPage = (target) => target === document.body || target?.id === "page";
  document.addEventListener("htmx:before:request", (event) => {
    if (asksByItself(event)) return;
    const { ctx } = event.detail;
    const source = ctx.sourceElement;
    underWay.add(ctx);
    ctx.from = location.pathname;
    ctx.sent = ctx.request.form && new Map(fields(ctx.request.form).map((field) => [field, given(field)]));
    if (isPage(ctx.target)) ctx.turn = asked += 1;
    const unsaved = all("form[data-leave][data-dirty]").find((form) => form !== ctx.request.form);
    if (unsaved && ctx.target?.id === "page") {
      if (!confirm(unsaved.dataset.leave)) { event.preventDefault(); return; }
      ctx.left = unsaved;
    }
    const card = source instanceof HTMLFormElement && source.closest("[data-proposal]");
    ctx.decided = card && { next: nextOf(card)?.id };
    // What it would have brought is still wanted: not every answer is a whole page.
    if (refreshing) { refreshing.abort(); soon(300); }
  });
  document.addEventListener("htmx:after:request", ({ detail: { ctx } }) => {
    // Another answer may have put a new page where this one was asked for.
    if (ctx.target?.id === "page" && !ctx.target.isConnected) ctx.target = $("#page");
  });
  document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => underWay.delete(ctx));
  document.addEventListener("htmx:before:swap", (event) => {
    const { ctx, tasks } = event.detail;
    const fragment = tasks.find((one) => one.type === "main")?.fragment;
    if (ctx.refresh || !fragment || !(ctx.target instanceof Element)) return;
    if (isPage(ctx.target)) {
      if (ctx.turn < shown) {
        event.preventDefault();
        if (isOwn(ctx.text)) $("#toasts")?.append(...all("[data-toast]", fragment));
        htmx.process($("#toasts"));
        prepare();
        soon();
        return;
      }
      const lost = all("form[data-leave]").find((form) => form !== ctx.left && form !== ctx.request.form && isTyped(form, ctx) && !twin(form, ctx, fragment));
      if (lost && ctx.target.id === "page" && !confirm(lost.dataset.leave)) { event.preventDefault(); soon(); return; }
      shown = ctx.turn;
      ctx.open = all("dialog[open]").map((dialog) => dialog.id);
      ctx.words = isOwn(ctx.text) ? $("#palette-text")?.value : undefined;
    }
    keepTyped(ctx, fragment);
  });

  /* After a page came: top and heading for another page, the next proposal after a decision. */
  document.addEventListener("htmx:after:swap", (event) => {
    const ctx = event.detail.ctx;
    prepare();
    if (ctx.refresh) return;
    if (isPage(ctx.target)) bringBack();
    ctx.open?.forEach((id) => openDialog(id, ctx.words));
    ctx.typed?.focus({ preventScroll: true });
    if (ctx.target instanceof Element && ctx.target.matches(".editing")) {
      if (typing(document.activeElement) && ctx.target.contains(document.activeElement) && ctx.kept) return;
      const wanted = ["[aria-invalid]", ".outcome", ".field :is(input:not([type=hidden]), textarea, select)"];
      wanted.map((one) => $(one, ctx.target)).find(Boolean)?.focus();
      return;
    }
    const problem = $("#problem");
    if (problem && ctx.response?.status >= 400) {
      const held = document.activeElement;
      const goesOn = typing(held) && (!held.form || held.form !== ctx.request.form || isTyped(held.form, ctx));
      if (!goesOn) problem.focus();
      problem.scrollIntoView({ block: "nearest" });
      soon();
      return;
    }
    if (ctx.target?.id !== "page") return;
    unseen = false;
    document.documentElement.classList.toggle("inbox-open", drawerWanted() && visibleDrawer());
    if (location.hash) {
      $(`[id="${CSS.escape(location.hash.slice(1))}"]`)?.scrollIntoView();
    } else if (location.pathname !== ctx.from) {
      window.scrollTo(0, 0);
    }
    const held = document.activeElement;
    // Letters that were meant for a field would be commands elsewhere.
    if (typing(held) || (!ctx.decided && held && held !== document.body)) return;
    const decided = ctx.decided;
    const wanted = $("[autofocus]") || (decided?.next && document.getElementById(decided.next)) || (decided && $("[data-proposal]")) || $("#main");
    wanted?.focus({ preventScroll: location.pathname !== ctx.from });
  });
  /* Whoever types already is where they want to be: a page that sets its focus late moves nobody. */
  document.addEventListener("keydown", () => all("#main [autofocus]").forEach((one) => one.removeAttribute("autofocus")), true);
  const nextOf = (card) => {
    const cards = all("[data-proposal]");
    const at = cards.indexOf(card);
    return cards[at + 1] || cards[at - 1];
  };

  /* Live: the stream says that something changed; the page is fetched anew and morphed, so that
     focus, typed text and open parts stay. */
  let stream = null;
  let refreshing = null;
  let again = false;
  let timer = 0;
  let due = 0;
  const listen = () => {
    // A browser opens few connections to one place: pages that nobody sees leave them to the others.
    const wanted = Boolean($("#page[data-live]")) && !document.hidden;
    if (!wanted) { stream?.close(); stream = null; return; }
    if (stream && stream.readyState !== EventSource.CLOSED) return;
    stream = new EventSource("/live");
    // Also at the first hello: something may have changed since the page was made.
    stream.addEventListener("hello", () => soon());
    stream.addEventListener("notice", () => soon());
    // A device that knows this browser no longer ends the stream for good; the page says so.
    stream.addEventListener("error", (event) => { if (event.target.readyState === EventSource.CLOSED) soon(); });
  };
  // Never later than was said before, and one after the other: where something changes all the
  // time, each answer would else be given up for the next, and none ever shown.
  const soon = (delay = 120) => {
    const at = performance.now() + delay;
    if (timer && at >= due) return;
    clearTimeout(timer);
    due = at;
    timer = setTimeout(() => { timer = 0; refresh(); }, delay);
  };
  const refresh = async () => {
    if (!$("#page[data-live]")) return;
    if (document.hidden) { stale = true; return; }
    if (underWay.size) { soon(300); return; }
    if (refreshing) { again = true; return; }
    const url = location.pathname + location.search;
    const mine = new AbortController();
    refreshing = mine;
    const tooLong = setTimeout(() => { again = true; mine.abort(); }, 60000);
    try {
      const answer = await fetch(url, { headers: { "HX-Request": "true", "Mana-Refresh": "1" }, credentials: "same-origin", signal: mine.signal });
      if (!answer.ok && answer.status !== 423) return;
      const text = await answer.text();
      if (underWay.size || location.pathname + location.search !== url) { soon(300); return; }
      stale = false;
      // Another account's token would send what was typed here to that account.
      if (!isOwn(text)) { signedOut(); return; }
      // Another tab may have signed in anew: forms that stay as they are need the new token.
      const token = /name="csrf" value="([^"]+)"/.exec(text)?.[1];
      if (token) all('input[name="csrf"]').forEach((input) => { input.value = token; });
      if (answer.ok && !text.includes("data-live")) { signedOut(); return; }
      if ($("#signed-out")) $("#alert").replaceChildren();
      if (answer.status === 423) layAside();
      const meant = card();
      await htmx.swap({ text, target: "#page", select: "#page", swap: "outerMorph", sourceElement: document.body, refresh: true });
      if (card() !== meant) unseen = true;
    } catch (error) {
      if (error.name !== "AbortError") soon(3000);
    } finally {
      clearTimeout(tooLong);
      refreshing = null;
      if (again) { again = false; soon(); }
    }
  };
  /* The device began anew, or the account left: unsaved words stay until they can be saved. */
  const signedOut = () => {
    if (!$("form[data-leave][data-dirty]")) { location.reload(); return; }
    const alert = $("#alert");
    if (!alert || $("#signed-out")) return;
    alert.replaceChildren($("#signed-out-words").content.cloneNode(true));
  };
  const unlocked = async () => {
    if (!$("#page.locked") || document.hidden || underWay.size) return;
    const answer = await fetch(location.href, { headers: { "Mana-Refresh": "1" }, credentials: "same-origin" }).catch(() => null);
    if (!answer || answer.status === 423) return;
    const text = await answer.text().catch(() => null);
    if (text === null || !$("#page.locked")) return;
    if (!isOwn(text)) aside = [];
    if (aside.length) htmx.ajax("GET", location.href, { target: "#page", select: "#page", swap: "outerHTML" });
    else location.reload();
  };
  let stale = false;
  let morphing = false;
  document.addEventListener("htmx:before:swap", (event) => { morphing = Boolean(event.detail.ctx.refresh); });
  document.addEventListener("htmx:finally:swap", () => { morphing = false; });
  document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden && stale) soon(); unlocked(); });
  window.addEventListener("focus", () => { unlocked(); if ($("#signed-out") || stream?.readyState === EventSource.CLOSED) soon(0); });
  setInterval(() => { if (!document.hidden) soon(0); unlocked(); }, 60000);
  htmx.registerExtension("keep", {
    htmx_before_morph_node: (node) => {
      if (!morphing || !(node instanceof Element)) return true;
      if (node.matches("[data-keep], form[data-dirty], .peek:not(:empty), .editing:not(:empty), #alert:has(#problem)")) return false;
      return !(node === document.activeElement && typing(node));
    },
    htmx_before_morph_attr: (node, detail) =>
      !(morphing && detail.attrName === "open" && node.matches("details, dialog")) &&
      !(morphing && detail.attrName === "class" && node.matches(".later")),
  });

  /* Whoever types is here, though nothing is sent: the account does not lock itself meanwhile. */
  let saidAt = -HERE_MS;
  const sayHere = () => {
    if (!$("#page[data-live]") || performance.now() - saidAt < HERE_MS) return;
    saidAt = performance.now();
    fetch("/here", { credentials: "same-origin" }).catch(() => {});
  };

  /* Typed and not yet sent. */
  const dirty = (form) => {
    form.dataset.dirty = "1";
    const words = $("[data-dirty-words]", form);
    if (words) words.hidden = false;
  };
  document.addEventListener("input", (event) => {
    sayHere();
    const form = event.target.closest("form");
    if (!form) return;
    dirty(form);
    if (event.target.dataset.filter) filter(event.target);
    if (event.target.dataset.strength) strength(event.target);
  });
  window.addEventListener("beforeunload", (event) => {
    if (aside.length || $("form[data-leave][data-dirty]")) event.preventDefault();
  });
  /* Back and forward are no requests that could be held up; before htmx, which would follow them. */
  window.navigation?.addEventListener("navigate", (event) => {
    const unsaved = $("form[data-leave][data-dirty]");
    if (event.navigationType !== "traverse" || event.hashChange || !event.cancelable || !unsaved) return;
    if (confirm(unsaved.dataset.leave)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  });

  /* Every page says which account it is for; a part of a page says nothing, and is its page's. */
  const account = () => $("#page")?.dataset.account;
  const isOwn = (text) => {
    const found = /<div id="page"[^>]* data-account="([^"]*)"/.exec(text);
    return !found || found[1] === account();
  };

  /* A page that comes takes the place of its forms: what was typed into them since, or into
     others than the one that was sent, goes over to their like, if it is the same account's.
     Forms are alike that send the same to the same place, but for what is typed; of several, the
     place among them says which. The form that was sent may come back with other fixed values:
     its id says that it is the same. */
  const fields = (form) => [...form.elements].filter((one) => one.name && one.matches("input:not([type=hidden], [type=submit]), textarea, select"));
  const ticks = (field) => field.type === "checkbox" || field.type === "radio";
  const given = (field) => (ticks(field) ? field.checked : field.value);
  const atFirst = (field) => {
    if (ticks(field)) return field.defaultChecked;
    if (!(field instanceof HTMLSelectElement)) return field.defaultValue;
    return ([...field.options].find((one) => one.defaultSelected) || field.options[0])?.value;
  };
  const before = (field, form, ctx) => (form === ctx.request.form && ctx.sent.has(field) ? ctx.sent.get(field) : atFirst(field));
  const isTyped = (form, ctx) => "dirty" in form.dataset && fields(form).some((field) => given(field) !== before(field, form, ctx));
  // The token is the session's, and the zone the browser's: neither says what a form is for.
  const fixed = (form) => [...form.elements].filter((one) => one.matches("input[type=hidden]:not([name=csrf], [data-zone])"));
  const purpose = (form) => JSON.stringify([form.getAttribute("action"), ...fixed(form).map((one) => [one.name, one.value])]);
  const alike = (form, root) => {
    const wanted = purpose(form);
    return all("form", root).filter((one) => purpose(one) === wanted);
  };
  const twin = (form, ctx, root) => {
    if (!isOwn(ctx.text)) return null;
    const same = alike(form, root)[alike(form, ctx.target).indexOf(form)];
    return same || (form === ctx.request.form && form.id ? $(`form[id="${CSS.escape(form.id)}"]`, root) : null);
  };
  const twinField = (field, form, other) => {
    const same = (one) => one.name === field.name && (!ticks(field) || one.value === field.value);
    return fields(other).filter(same)[fields(form).filter(same).indexOf(field)];
  };
  const keepTyped = (ctx, fragment) => all("form", ctx.target).forEach((form) => {
    const held = document.activeElement?.form === form && typing(document.activeElement) ? document.activeElement : null;
    const typed = form !== ctx.left && isTyped(form, ctx);
    const other = (held || typed) && twin(form, ctx, fragment);
    if (!other) return;
    if (held && !held.id) ctx.typed = twinField(held, form, other);
    if (!typed) return;
    ctx.kept = handOver(form, other, (field) => before(field, form, ctx), form === ctx.request.form) || ctx.kept;
  });
  /* Secrets stay where they were typed: no other form gets a password. */
  const handOver = (form, other, was, isSent = false) => {
    let handed = false;
    fields(form).filter((field) => field.type !== "password").forEach((field) => {
      const now = given(field);
      const to = now !== was(field) && twinField(field, form, other);
      if (!to) return;
      handed = true;
      if (ticks(to)) to.checked = now;
      // A field that is empty again took what was sent: what was typed behind it is left.
      else to.value = isSent && !to.value && now.startsWith(was(field)) ? now.slice(was(field).length) : now;
      for (let part = to.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    });
    if (handed) dirty(other);
    return handed;
  };

  /* A page that is locked shows nothing; words that were not saved wait out of sight, and are in
     their form again if it comes with the next page of their account. For any other page, and any
     other account's, they are gone. */
  let aside = [];
  let asideFor;
  const layAside = () => {
    aside = all("form[data-leave][data-dirty]").map((form) => ({ form, at: alike(form, document).indexOf(form) }));
    asideFor = account();
  };
  const bringBack = () => {
    const own = account() === asideFor;
    if (own && $("#page.locked")) return;
    const waiting = own ? aside : [];
    aside = [];
    waiting.forEach(({ form, at }) => {
      const other = alike(form, document)[at];
      if (other) handOver(form, other, atFirst);
    });
  };

  const filter = (input) => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    all(`#${input.dataset.filter} li`).forEach((item) => {
      const text = item.textContent.toLowerCase();
      item.hidden = !words.every((word) => text.includes(word));
    });
  };
  const countTicked = () => all("[data-ticked]").forEach((line) => {
    const n = all(`#${line.dataset.ticked} input:checked`).length;
    line.textContent = n === 1 ? line.dataset.one : line.dataset.many.replace("{n}", n);
  });
  document.addEventListener("change", countTicked);

  /* An estimate of how long guessing would take; no rules. */
  const COMMON = /passwor[dt]|qwert[yz]|letmein|admin|welcome|iloveyou|monkey|dragon|football|sunshine|12345|abcde|mana/gi;
  const strength = (input) => {
    const plain = input.value.replace(COMMON, "x").replace(/(.)\1{2,}/g, "$1");
    const sets = [[/[a-z]/, 26], [/[A-Z]/, 26], [/[0-9]/, 10], [/[^a-zA-Z0-9]/, 30]];
    const size = sets.reduce((sum, [set, count]) => sum + (set.test(plain) ? count : 0), 0) || 1;
    const spread = new Set(plain).size / Math.max(1, plain.length);
    const bits = plain.length * Math.log2(size) * Math.min(1, 0.45 + spread * 0.6) * 0.8;
    const level = !input.value ? 0 : bits < 32 ? 1 : bits < 50 ? 2 : bits < 70 ? 3 : 4;
    const meter = document.getElementById(input.dataset.strength);
    const words = document.getElementById(`${input.dataset.strength}-words`);
    if (meter) meter.value = level;
    if (words) words.textContent = words.dataset.words.split("|")[level];
  };

  /* Drawer and dialogs. */
  const visibleDrawer = () => Boolean($(".drawer"));
  const drawerWanted = () => { try { return localStorage.getItem("mana-inbox") === "open"; } catch { return false; } };
  const toggleDrawer = () => {
    if (!visibleDrawer() || innerWidth < 601) { follow(".nav-inbox a"); return; }
    const open = document.documentElement.classList.toggle("inbox-open");
    try { localStorage.setItem("mana-inbox", open ? "open" : ""); } catch { /* private window */ }
    if (open) $(".drawer a, .drawer button")?.focus();
    else $("#main")?.focus();
  };
  const follow = (selector) => $(selector)?.click();
  const openDialog = (id, words) => {
    const dialog = document.getElementById(id);
    if (!dialog || dialog.open) return;
    dialog.showModal();
    if (id !== "palette") return;
    if (words === undefined) { entered = null; moved = ""; }
    $("#palette-text").value = words ?? "";
    askPalette();
  };
  document.addEventListener("click", (event) => {
    all("[data-menu][open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; });
    const target = event.target.closest("button, dialog, summary");
    if (!target) return;
    if (target.dataset.open) openDialog(target.dataset.open);
    else if ("drawer" in target.dataset) toggleDrawer();
    else if (target.dataset.copy) copy(target);
    else if ("print" in target.dataset) window.print();
    else if ("later" in target.dataset) later(target.closest("[data-proposal]"));
    else if (target.tagName === "DIALOG" && event.target === target) target.close();
  });

  const copy = async (button) => {
    const field = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      // A page of another machine has no clipboard; the old way has.
      field.select();
      if (!document.execCommand("copy")) return;
    }
    // Among what is said: the page around it may be brought up to date at any moment.
    const said = document.createElement("div");
    said.className = "toast";
    said.dataset.toast = "";
    said.append(document.createElement("p"));
    said.firstChild.textContent = button.dataset.copied;
    $("#toasts")?.append(said);
    prepare();
  };

  /* A link of an invitation that was opened here: its secret leaves the address at once, and
     waits in memory for the form that posts it to this device. */
  const INVITED = /^#1\.[0-9a-f]{64}\.[0-9a-f-]{36}\.[\w-]{43}\.[0-9a-f]{64}$/;
  let invited = "";
  const takeInvitation = () => {
    if (INVITED.test(location.hash)) {
      invited = `${location.origin}/join${location.hash}`;
      history.replaceState(history.state, "", location.pathname + location.search);
    }
    const field = $("#join-link");
    if (field && invited && !field.value) { field.value = invited; invited = ""; }
  };

  /* The palette: typed words choose, arrows move, Enter does; never what the words did not find. */
  let entered = null;
  let moved = "";
  const options = () => all("#palette-list [role=option]");
  const select = (index) => {
    const found = options();
    if (!found.length) return;
    const at = (index + found.length) % found.length;
    found.forEach((option, number) => option.setAttribute("aria-selected", String(number === at)));
    found[at].id = "palette-chosen";
    found.forEach((option, number) => { if (number !== at) option.removeAttribute("id"); });
    $("#palette-text")?.setAttribute("aria-activedescendant", "palette-chosen");
    found[at].scrollIntoView({ block: "nearest" });
  };
  const selected = () => options().findIndex((option) => option.getAttribute("aria-selected") === "true");
  const askPalette = () => $("#palette-text").dispatchEvent(new Event("open"));
  const isFound = () => $("#palette-list").dataset.words === $("#palette-text").value;
  document.addEventListener("htmx:after:swap", (event) => {
    if (event.detail.ctx.sourceElement?.id !== "palette-text" || !$("#palette")?.open) return;
    const again = options().findIndex((option) => option.textContent === moved);
    if (again < 0) moved = "";
    select(Math.max(0, again));
    if (isFound() && entered === $("#palette-text").value) choose();
  });
  // It was opened before htmx listened.
  document.addEventListener("htmx:after:process", (event) => { if (event.target === document.body && $("#palette")?.open) askPalette(); });
  const choose = () => {
    const option = options()[Math.max(0, selected())];
    entered = null;
    if (!option) return;
    $("#palette").close();
    option.click();
  };
  const move = (by) => {
    select(selected() + by);
    moved = options()[selected()]?.textContent ?? "";
  };
  const enter = () => {
    if (moved || isFound()) { choose(); return; }
    entered = $("#palette-text").value;
    askPalette();
  };
  document.addEventListener("input", (event) => { if (event.target.id === "palette-text") { entered = null; moved = ""; } });

  /* Proposals. */
  const cards = () => all("[data-proposal]");
  const card = () => document.activeElement?.closest("[data-proposal]") || cards().find((one) => !one.matches(".later")) || cards()[0];
  const later = (found) => {
    if (!found) return;
    const next = nextOf(found);
    found.classList.add("later");
    next?.focus();
  };
  /* While a proposal is edited, only what was typed can be approved, after it was looked at. */
  const edited = (found) => found && $(".editing .edit", found);
  /* A card that came by itself to where another was meant is shown first, not decided. */
  let unseen = false;
  document.addEventListener("focusin", (event) => { if (event.target.closest("[data-proposal]")) unseen = false; });
  const showFirst = () => {
    const isNew = unseen && Boolean(card());
    if (isNew) card().focus();
    return isNew;
  };
  const press = (key) => {
    const found = card();
    const edit = edited(found);
    if (edit) {
      const next = key === "a" && ($('[id^="approve-edited-"]', edit) || $('[id^="look-"]', edit));
      if (next) next.click();
      return Boolean(next);
    }
    const button = found && $(`[data-key="${key}"]`, found);
    if (!button || button.disabled) return false;
    button.click();
    return true;
  };
  const step = (by) => {
    const found = cards();
    if (!found.length) return;
    const at = found.indexOf(document.activeElement?.closest("[data-proposal]"));
    found[at < 0 ? 0 : Math.min(found.length - 1, Math.max(0, at + by))].focus();
  };

  /* Keys. */
  let prefix = 0;
  document.addEventListener("keydown", (event) => {
    const key = event.key;
    if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "k") {
      event.preventDefault();
      openDialog("palette");
      return;
    }
    if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "s") {
      const save = $("[data-save]", document.activeElement?.closest("form") || document);
      if (save) { event.preventDefault(); save.click(); }
      return;
    }
    if (event.target.id === "palette-text") {
      if (key === "ArrowDown" || key === "ArrowUp") { event.preventDefault(); move(key === "ArrowDown" ? 1 : -1); }
      if (key === "Enter") { event.preventDefault(); if (!event.repeat) enter(); }
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
    if (key === "Escape") {
      const menu = $("[data-menu][open]");
      if (menu) { menu.open = false; $("summary", menu)?.focus(); }
      else if (typing(event.target)) event.target.blur();
      else if (document.documentElement.classList.contains("inbox-open") && visibleDrawer()) toggleDrawer();
      else $("details.reject[open]")?.removeAttribute("open");
      return;
    }
    // A key that is held down decides once.
    if (typing(event.target) || (event.repeat && key !== "j" && key !== "k")) return;
    const handled = onKey(key);
    if (handled) event.preventDefault();
  });
  const onKey = (key) => {
    if (Date.now() - prefix < 1500 && "hntm".includes(key)) {
      prefix = 0;
      follow(`.rail a[data-go="${key}"]`);
      return true;
    }
    if (key === "g") { prefix = Date.now(); return true; }
    if (!$("#page.shell")) return false;
    if (key === "i") { toggleDrawer(); return true; }
    if (key === "?") { openDialog("keys"); return true; }
    if (key === "s") {
      const menu = all("[data-menu]").find((one) => one.getClientRects().length);
      if (menu) { menu.open = true; $("a", menu)?.focus(); }
      return Boolean(menu);
    }
    if (/^[1-9]$/.test(key)) {
      const wanted = all("[data-card]")[Number(key) - 1];
      wanted?.focus();
      wanted?.scrollIntoView({ block: "nearest" });
      return Boolean(wanted);
    }
    if (key === "j" || key === "k") { step(key === "j" ? 1 : -1); return true; }
    if (key === "a" || key === "e" || key === "l") return showFirst() || press(key);
    if (key === "r") {
      if (showFirst()) return true;
      const found = card();
      const details = found && $("details.reject", found);
      if (!details || edited(found)) return false;
      details.open = true;
      $("input[name=chip]", details)?.focus();
      return true;
    }
    if (key === "x") {
      if (showFirst()) return true;
      const tick = card() && $(".tick", card());
      if (tick) tick.click();
      return Boolean(tick);
    }
    if (key === "A") {
      const plan = document.activeElement?.closest(".plan") || all(".plan").find((one) => $(".tick:checked", one));
      const form = $("[data-ticked-form]", plan || document) || $("#approve-together")?.form;
      form?.requestSubmit();
      return Boolean(form);
    }
    if (key === "u") { const undo = $("#undo"); undo?.click(); return Boolean(undo); }
    if (key === "c") {
      const wanted = $("[data-create]");
      if (!wanted) return false;
      if (typing(wanted)) wanted.focus();
      else wanted.click();
      return true;
    }
    return false;
  };
  /* Enter in a chip sends the rejection; radios alone would not. */
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches?.("input[name=chip]")) {
      event.preventDefault();
      event.target.form.requestSubmit();
    }
  });

  /* Once per page. */
  const prepare = () => {
    all("[data-zone]").forEach((input) => {
      if (!input.value) input.value = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
    });
    all("[data-toast]").forEach((toast) => {
      if (toast.dataset.toast) return;
      toast.dataset.toast = "seen";
      setTimeout(function leave() {
        if (toast.contains(document.activeElement) || toast.matches(":hover")) setTimeout(leave, 2000);
        else toast.remove();
      }, 10000);
    });
    all("[data-copy], [data-print]").forEach((button) => { button.hidden = false; });
    takeInvitation();
    countTicked();
    listen();
  };
  document.addEventListener("DOMContentLoaded", () => {
    document.documentElement.classList.toggle("inbox-open", drawerWanted() && visibleDrawer());
    prepare();
  });
  window.addEventListener("hashchange", takeInvitation);
  window.addEventListener("pagehide", () => { stream?.close(); stream = null; });
  window.addEventListener("pageshow", (event) => { if (event.persisted) { prepare(); soon(); } });
})();
