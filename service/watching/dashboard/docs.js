// The API's documentation: swagger-ui on this service's own document, with the token of the page in this tab.
// No validator badge: that is another host.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
  requestInterceptor(request) {
    const token = sessionStorage.getItem("logstep-token");
    if (token && !request.headers.Authorization) request.headers.Authorization = `Bearer ${token}`;
    return request;
  },
});
