/** The frame of all views: brand, navigation, theme, notices, and the question for the key. */
import type { ComponentType, JSX } from "preact";
import { useEffect, useState } from "preact/hooks";

import { barContent } from "./bar.ts";
import { KeyDialog } from "./key_dialog.tsx";
import { go, hashOf, route } from "./router.ts";
import { THEMES, theme, type Theme } from "./theme.ts";
import { Announcer } from "./ui/announce.tsx";
import type { IconName } from "./ui/icons.tsx";
import { Menu } from "./ui/menu.tsx";
import { Toasts } from "./ui/toast.tsx";
import { type View, VIEWS, viewOf } from "./views.ts";

const THEME_ICONS: Record<Theme, IconName> = { system: "system", light: "sun", dark: "moon" };
const THEME_NAMES: Record<Theme, string> = { system: "As the system", light: "Light", dark: "Dark" };

export function App(): JSX.Element {
  const view = viewOf(route.value.view);
  return (
    <>
      <header class="bar">
        <a class="brand" href={hashOf("chat")} aria-label="Understudy">
          <Mark />
          <span>Understudy</span>
        </a>
        {VIEWS.length > 1 && <Navigation current={view} />}
        <div class="bar-content">{barContent.value}</div>
        <ThemeMenu />
      </header>
      <Loaded key={view.name} view={view} />
      <Toasts />
      <KeyDialog />
      <Announcer />
    </>
  );
}

function Mark(): JSX.Element {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <path d="M16 26V19M16 19L9 13V7" />
      <path d="M16 19V7M16 19L23 13V7" class="faint" />
    </svg>
  );
}

function Navigation({ current }: { current: View }): JSX.Element {
  return (
    <nav aria-label="Views">
      <div class="navigation">
        {VIEWS.map((view) => (
          <a key={view.name} href={hashOf(view.name)} aria-current={view === current ? "page" : undefined}>
            {view.title}
          </a>
        ))}
      </div>
      <Menu
        name="Views"
        text={current.title}
        class="narrow-navigation"
        items={VIEWS.map((view) => ({
          name: view.title,
          isChosen: view === current,
          run: () => go(hashOf(view.name)),
        }))}
      />
    </nav>
  );
}

function ThemeMenu(): JSX.Element {
  const items = THEMES.map((name) => ({
    name: THEME_NAMES[name],
    icon: THEME_ICONS[name],
    isChosen: theme.value === name,
    run: () => (theme.value = name),
  }));
  return <Menu name="Theme" icon={THEME_ICONS[theme.value]} items={items} class="to-left" />;
}

/** A view, once its code is here. */
function Loaded({ view }: { view: View }): JSX.Element {
  const [component, setComponent] = useState<ComponentType | null>(() => view.component ?? null);
  const [hasFailed, setFailed] = useState(false);
  useEffect(() => {
    document.title = `${view.title} · Understudy`;
    if (component === null) {
      view.load?.().then((found) => setComponent(() => found), () => setFailed(true));
    }
  }, []);
  if (hasFailed) {
    return (
      <main class="view notice">
        <p>This part of the page could not be loaded: the server does not answer, or has been updated.</p>
        <a href="">Load the page again</a>
      </main>
    );
  }
  const Component = component;
  return Component === null ? <main class="view" aria-busy="true" /> : <Component />;
}
