/** Express has no types of its own; only its app, a request listener, is used. */
declare module "express" {
  // deno-lint-ignore no-explicit-any
  const express: any;
  export default express;
}
