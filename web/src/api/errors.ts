/** The errors of requests to the server. */

/** An error that the server has answered with. */
export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(
    message: string,
    /** The status of the answer, 0 for an error inside a stream. */
    readonly status: number,
    readonly code: string | null,
    /** The field that is wrong. */
    readonly param: string | null = null,
    /** The seconds after which the server asks to try again. */
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }
}

/** The server does not answer, or its answer has been cut off. */
export class ConnectionError extends Error {
  override readonly name = "ConnectionError";
}

/** Return whether an error is that of a request which the user has stopped. */
export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

interface ErrorBody {
  error?: { message?: unknown; code?: unknown; param?: unknown };
}

/** Return the error in the body of an answer or in an event of a stream. */
export function errorFrom(body: unknown, status: number, retryAfter: string | null = null): ApiError {
  const found = (typeof body === "object" && body !== null ? (body as ErrorBody).error : null) ?? {};
  const message = typeof found.message === "string" ? found.message : `The server answered ${status}.`;
  const seconds = retryAfter === null ? Number.NaN : Number(retryAfter);
  return new ApiError(
    message,
    status,
    typeof found.code === "string" ? found.code : null,
    typeof found.param === "string" ? found.param : null,
    Number.isFinite(seconds) ? seconds : null,
  );
}
