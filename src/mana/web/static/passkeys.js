/* Passkeys: the browser makes or uses one, and what it says is posted by the form around it. */
"use strict";

(() => {
  const bytes = (text) => {
    const plain = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
    return Uint8Array.from(plain, (sign) => sign.charCodeAt(0));
  };
  const text = (buffer) =>
    btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const listed = (found) => (found || []).map((one) => ({ ...one, id: bytes(one.id) }));

  const made = async (options) => {
    const publicKey = {
      ...options,
      challenge: bytes(options.challenge),
      user: { ...options.user, id: bytes(options.user.id) },
      excludeCredentials: listed(options.excludeCredentials),
    };
    const found = await navigator.credentials.create({ publicKey });
    const { response } = found;
    return {
      id: found.id, rawId: text(found.rawId), type: found.type, clientExtensionResults: {},
      response: { clientDataJSON: text(response.clientDataJSON), attestationObject: text(response.attestationObject) },
    };
  };
  const used = async (options) => {
    const publicKey = { ...options, challenge: bytes(options.challenge), allowCredentials: listed(options.allowCredentials) };
    const found = await navigator.credentials.get({ publicKey });
    const { response } = found;
    return {
      id: found.id, rawId: text(found.rawId), type: found.type, clientExtensionResults: {},
      response: {
        clientDataJSON: text(response.clientDataJSON), authenticatorData: text(response.authenticatorData), signature: text(response.signature),
        userHandle: response.userHandle && response.userHandle.byteLength ? text(response.userHandle) : null,
      },
    };
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-passkey]");
    if (!button) return;
    event.preventDefault();
    const form = button.form;
    const said = form.querySelector("[data-passkey-said]");
    const options = JSON.parse(button.dataset.options);
    const domain = (options.rp && options.rp.id) || options.rpId || location.hostname;
    const isHere = location.hostname === domain || location.hostname.endsWith(`.${domain}`);
    if (!window.PublicKeyCredential || !isHere) {
      said.textContent = said.dataset.elsewhere;
      return;
    }
    button.disabled = true;
    said.textContent = said.dataset.waiting;
    try {
      const answer = button.dataset.passkey === "make" ? await made(options) : await used(options);
      form.querySelector("[name=passkey]").value = JSON.stringify(answer);
      said.textContent = "";
      form.requestSubmit();
    } catch {
      // Not what the browser says of it: it may name what is on this machine.
      said.textContent = said.dataset.failed;
    } finally {
      button.disabled = false;
    }
  });
})();
