// The API's documentation: swagger-ui on this service's own document. No validator badge: that is another host.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
});
