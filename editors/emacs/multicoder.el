;;; multicoder.el --- multicoder in Emacs through lsp-mode 10 or newer  -*- lexical-binding: t -*-

;; Ghost text after a short pause, C-RET accepts it, C-n and C-p show other candidates (lsp-mode's own keys).
;; Load this file from your init file; `multicoder-lsp' must be in PATH (cargo install --path lsp).

(require 'lsp-mode)
(require 'lsp-inline-completion)

(lsp-register-client
 (make-lsp-client :new-connection (lsp-stdio-connection '("multicoder-lsp"))
                  :server-id 'multicoder
                  :activation-fn (lambda (&rest _) (derived-mode-p 'prog-mode))
                  :add-on? t))

;; lsp-mode waits two seconds before it asks; the model answers in a fraction of that.
(setq lsp-inline-completion-idle-delay 0.2)
(add-hook 'prog-mode-hook #'lsp-deferred)

(provide 'multicoder)
;;; multicoder.el ends here
